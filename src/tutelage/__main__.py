"""`python -m tutelage` is `tutelage`."""

import sys

from tutelage.cli import main

sys.exit(main())
