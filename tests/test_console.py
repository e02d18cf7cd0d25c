"""stderr for people, stdout for the result, whatever happens to either (E10)."""

import io as streams
import os
import pty
import subprocess
import sys
import textwrap

import pytest

from tutelage import console


def _python(code: str, **streams_of: object) -> subprocess.CompletedProcess[str]:
    """With buffered streams, as users have them: what could not be written is tried once more at exit."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    streams_of.setdefault("env", {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"})
    return subprocess.run(command, text=True, timeout=60, **streams_of)  # type: ignore[call-overload]


def test_one_message_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.warning("PERM", "file 'a\nb\x1b[31m\u202e' is odd")
    assert capsys.readouterr().err == "warning[PERM]: file 'a b\\x1b[31m\\u202e' is odd\n"


def test_quiet_hides_notes_and_progress_but_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(True)
    try:
        console.note("RESUMED", "x")
        with console.Progress("training", total=2, line_every=1) as progress:
            progress.advance(2)
        console.warning("PERM", "y")
    finally:
        console.set_quiet(False)
    assert capsys.readouterr().err == "warning[PERM]: y\n"


def test_what_many_runs_say_is_shown_once_inside_and_again_outside(capsys: pytest.CaptureFixture[str]) -> None:
    with console.each_once():
        for message in ("x", "y", "x"):
            console.warning("PERM", message)
            console.note("RESUMED", message)
    console.warning("PERM", "x")
    said = ["warning[PERM]: x", "note[RESUMED]: x", "warning[PERM]: y", "note[RESUMED]: y", "warning[PERM]: x"]
    assert capsys.readouterr().err.splitlines() == said


def test_progress_off_a_terminal_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.Progress("training", total=100, line_every=40) as progress:
        for done in range(10, 101, 10):
            progress.update(done, f"loss {done / 100} nats")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.isprintable() is False and "\x1b" not in printed.err
    assert "\r" not in printed.err
    lines = printed.err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"training: {n} of 100 ({n}%)" for n in (40, 80, 100)]
    assert "loss 0.4 nats" in lines[0]


def test_progress_on_a_terminal_is_a_bar_and_leaves_stdout_alone() -> None:
    main, other = pty.openpty()
    done = _python(
        """
        from tutelage import console
        with console.Progress("training", total=3) as progress:
            for _ in range(3):
                progress.advance(1, "loss 1.0")
                console.note("RESUMED", "in the middle")
            console.print_result("result")
        """,
        stderr=other,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(other)
    seen = os.read(main, 1 << 16).decode()
    os.close(main)
    assert done.stdout == "result\n" and done.returncode == 0
    assert "\x1b[" in seen and "training" in seen and "note[RESUMED]: in the middle" in seen


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_reader_that_has_gone_is_no_error(gone: str) -> None:
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if gone == "stdout" else "stdout"
    code = """
        from tutelage import console
        for _ in range(3):
            console.note("RESUMED", "n")
            with console.Progress("p", total=1, line_every=1) as progress:
                progress.advance()
            console.print_result("result")
        """
    done = _python(code, **{gone: write, other: subprocess.PIPE})
    os.close(write)
    assert done.returncode == 0
    assert "Traceback" not in (done.stderr or "") and "Exception" not in (done.stderr or "")
    assert done.stdout == ("result\n" * 3 if gone == "stderr" else None)


def test_closed_streams_are_no_error() -> None:
    code = "from tutelage import console; console.note('RESUMED', 'n'); console.print_result('r')"
    assert subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" >&- 2>&-'], timeout=60).returncode == 0


def test_a_result_that_cannot_be_written_is_an_error() -> None:
    code = """
        from tutelage import console
        from tutelage.errors import ResourceError
        try:
            console.print_result("result")
        except ResourceError as error:
            raise SystemExit(error.exit_code)
        """
    with open("/dev/full", "w") as full:
        done = _python(code, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (6, "")


def test_a_message_after_stderr_was_closed_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = streams.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    console.note("RESUMED", "nobody hears this")
