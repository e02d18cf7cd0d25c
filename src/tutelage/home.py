"""The one folder outside the run directories: downloads and tokenised data, which can all be made again."""

import os
from pathlib import Path

import platformdirs

from tutelage import io


def home() -> Path:
    """`TUTELAGE_HOME`, else the platform's cache folder for this program; made (private) when it is absent."""
    named = os.environ.get("TUTELAGE_HOME", "")
    path = Path(named).expanduser().absolute() if named else Path(platformdirs.user_cache_dir("tutelage"))
    io.make_directory(path)
    return path
