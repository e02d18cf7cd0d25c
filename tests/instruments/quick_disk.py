"""A disk on which thousands of fsyncs cost nothing; `tests/test_io.py` has a real one."""

import os

QUICK_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # for tempfile: None is its default
