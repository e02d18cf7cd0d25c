"""The make targets' environment names what a machine lacks, and the tests reach only loopback."""

import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def fake_python(folder: Path, script: str) -> Path:
    """A folder for PATH with only `dirname`, `cd`'s shell and a python3 that is this script."""
    folder.mkdir()
    (folder / "dirname").symlink_to(shutil.which("dirname"))
    if script:
        (folder / "python3").write_text(f"#!{shutil.which('sh')}\n{script}\n")
        (folder / "python3").chmod(0o755)
    return folder


def prepare(folder: Path, **more: str) -> subprocess.CompletedProcess:
    command = [shutil.which("sh"), str(ROOT / "scripts/environment.sh")]
    return subprocess.run(command, env={"PATH": str(folder), **more}, capture_output=True, text=True)


OLD = 'case "$2" in *%d.%d.%d*) echo 3.9.2 ;; *) exit 1 ;; esac'
NO_VENV = f'case "$2" in *ensurepip*) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac'


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", ["Python 3.11 or newer is needed", "python3 is missing", "apt-get install python3 python3-venv"]),
        (OLD, ["Python 3.11 or newer is needed", "python3 is 3.9.2", "make PYTHON="]),
        (NO_VENV, ["cannot make virtual environments", "apt-get install python3."]),
    ],
    ids=["none", "old", "without venv"],
)
def test_what_a_machine_lacks_is_named_with_its_install_line(script, said, tmp_path):
    done = prepare(fake_python(tmp_path / "bin", script))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error[ENVIRONMENT]: ")
    assert [words for words in said if words not in line] == []


def test_a_named_python_that_is_not_there_is_said(tmp_path):
    done = prepare(fake_python(tmp_path / "bin", ""), PYTHON="/nowhere/my python3")
    assert done.returncode == 2
    assert "/nowhere/my python3 is missing" in done.stderr


# --- the network guard ---
# 192.0.2.0/24 and 2001:db8::/32 are reserved for documentation: nobody is there.
FAR, FAR_V6 = ("192.0.2.1", 80), ("2001:db8::1", 80)


def using(act, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as one:
        act(one)


OUTSIDE = {
    "create_connection": lambda: socket.create_connection(FAR, timeout=0.2),
    "connect": lambda: using(lambda s: s.connect(FAR)),
    "connect_ex": lambda: using(lambda s: s.connect_ex(FAR)),
    "IPv6": lambda: using(lambda s: s.connect(FAR_V6), socket.AF_INET6),
    "datagram": lambda: using(lambda s: s.sendto(b"x", FAR), kind=socket.SOCK_DGRAM),
    "name": lambda: socket.getaddrinfo("example.invalid", 443),
    "urllib": lambda: urllib.request.urlopen("http://example.invalid/"),
}


@pytest.mark.parametrize("attempt", OUTSIDE)
def test_nothing_leaves_this_machine(attempt):
    with pytest.raises(RuntimeError, match="tests reach only loopback"):
        OUTSIDE[attempt]()


def test_commands_that_tests_start_are_guarded_too():
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=0.2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tests reach only loopback" in done.stderr


def test_loopback_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = threading.Thread(target=lambda: server.accept()[0].close())
        accepted.start()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
        accepted.join()
