"""The session: no network, one thread, a cache folder of its own, the same hypothesis examples every time."""

import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

GUARD = Path(__file__).parent / "guard"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose more to waiting threads than they gain from them
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(GUARD))


def _in_memory() -> Path | None:
    """A folder for all that tests write, where memory can hold it, and None if this process did not make it.

    Runs are made durable file by file, and a slow disk would be most of what the tests measure; what only a power loss
    can show is tested by a model of one.  Set TMPDIR to look at the files afterwards.
    """
    memory, room = Path("/dev/shm"), 4 << 30
    if "TMPDIR" in os.environ or not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < room:
        return None
    for left in memory.glob("tutelage-pytest-*"):  # by a process that was killed
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = memory / f"tutelage-pytest-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)  # the workers' too
    return folder


_MEMORY = _in_memory()

import pytest  # noqa: E402  # the environment above must be set before anything imports torch
import sitecustomize as guard  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402

guard.install()  # Python may have found another sitecustomize before ours at start
# Of a mutant, that its oracle fails is enough: the smallest example is sought for people alone.
_LEFT_OUT = (Phase.shrink, Phase.explain) if os.environ.get("TUTELAGE_TESTS_NO_SHRINK") else ()
settings.register_profile(
    "tutelage", derandomize=True, deadline=None, database=None, phases=[p for p in Phase if p not in _LEFT_OUT]
)
settings.load_profile("tutelage")

_HOMES = Path(tempfile.mkdtemp(prefix="tutelage-tests-"))
# A worker of pytest-xdist inherits the environment that this file has changed in the first process: it is told apart.
_USERS_HOME = os.environ.setdefault("TUTELAGE_TESTS_USERS_HOME", os.environ.get("TUTELAGE_HOME", "")) or None
os.environ["TUTELAGE_HOME"] = str(_HOMES / "session")  # what fixtures wider than a test see


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The mutants and the files of slow tests first: none of them is to be what one process is left with at the end."""
    slow = Counter(item.path for item in items if {mark.name for mark in item.iter_markers()} & {"slow", "real"})
    items.sort(key=lambda item: ("tests/mutants/" not in item.nodeid, -slow[item.path]))


def pytest_collection_finish() -> None:
    """What importing has made stays to the end: no collection of garbage looks at it again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    for folder in (_HOMES, _MEMORY):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TUTELAGE_HOME: a folder of the test's own, made when first used; for `real` tests the user's, filled by make."""
    if request.node.get_closest_marker("real") is None:
        own = _HOMES / f"test-{id(request.node)}"
        monkeypatch.setenv("TUTELAGE_HOME", str(own))
        return own
    if _USERS_HOME is None:
        monkeypatch.delenv("TUTELAGE_HOME")
    else:
        monkeypatch.setenv("TUTELAGE_HOME", _USERS_HOME)
    return _home_with_teacher()


def _home_with_teacher() -> Path:
    """The user's home folder; the test fails when `make test` has not put the teacher there (it is never skipped)."""
    from tutelage.home import home as users_home
    from tutelage.models.fetch import PACKAGES

    (package,) = PACKAGES.values()
    if not package.place.is_file():
        pytest.fail(f"the real teacher is not in {package.place}: run make test, or python -m tutelage.models.fetch")
    return users_home()
