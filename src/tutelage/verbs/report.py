"""The verb `report`: a run, or several side by side, as a page, Markdown or JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage import console, io
from tutelage.errors import ConfigError
from tutelage.evaluation import records
from tutelage.reports.build import build_report
from tutelage.reports.compare import compared, path_of_comparison
from tutelage.reports.plain import build_markdown, to_json
from tutelage.reports.report import Report, report_of
from tutelage.rundir import RunDirectory
from tutelage.verbs.evaluate import require_finished

_FORMATS = ("html", "md", "json")
_MARK = b"tutelage report"  # in the first bytes of everything that is written here
_MARK_BYTES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What `report` gives back: where it lies, and what it says."""

    path: Path
    content: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {"path": str(self.path), **self.content}

    def __str__(self) -> str:
        return "\n".join([str(self.content["title"]), *(f"• {finding}" for finding in self.content["findings"])])


def report(*runs: str | Path, format: str | None = None, output: str | Path | None = None) -> Reported:
    """Write the report of a finished run, or one that compares several, and give its path.

    `format` is html (the default), md or json; without it the suffix of `output` decides.  Without `output` one run is
    reported in its own folder, several beside the first one, in a file called comparison.  A report that is there is
    replaced, any other file is not.  Raises ConfigError[NOT_COMPARABLE] with every reason when runs differ in their
    evaluation sets, tokenizers or teachers.
    """
    if not runs:
        raise ConfigError("CONFIG", "no run was named; expected a folder, as in tutelage report runs/demo")
    directories = [RunDirectory(run) for run in runs]
    for run in directories:
        require_finished(run, "report")
        _require_measured(run)
    chosen, path = _target(directories, format=format, output=output)
    made = report_of(directories[0]) if len(directories) == 1 else compared(directories)
    _write(path, _content(made, chosen), directories)
    for caution in made.cautions:
        what, _, said = caution.partition(": ")
        if what == "Same base":
            console.warning("SAME_BASE", said)
        elif what == "Rare trigger":
            console.warning("RARE_TRIGGER", said)
    return Reported(path=path, content=to_json(made))


def _require_measured(run: RunDirectory) -> None:
    if not (run.evaluation / records.TRANSFER).is_file():
        raise ConfigError(
            "CONFIG",
            f"{run} was not measured, so there is nothing to report; set data.held_out in its recipe, then: "
            f"tutelage evaluate {run}",
        )


def _target(runs: list[RunDirectory], *, format: str | None, output: str | Path | None) -> tuple[str, Path]:
    """(format, path) of what is asked."""
    if format is not None and format not in _FORMATS:
        raise ConfigError("CONFIG", f"format {format!r} unknown; expected {', '.join(_FORMATS)}")
    if output is None:
        chosen = format or "html"
        base = runs[0].report_path.with_suffix("") if len(runs) == 1 else path_of_comparison(runs)
        path = base.with_name(f"{base.name}.{chosen}")
    else:
        path = Path(output)
        chosen = format or path.suffix.lower().removeprefix(".")
        if chosen not in _FORMATS:
            raise ConfigError("CONFIG", f"{path} says no format; end it in .html, .md or .json, or give --format")
    _refuse_other_files(path)
    return chosen, path


def _refuse_other_files(path: Path) -> None:
    """ConfigError[EXISTS] for a file that is no report: a slip of the hand must not cost a run its records."""
    if path.is_dir():
        raise ConfigError("EXISTS", f"{path} is a folder; name a file, such as {path / 'report.html'}")
    if not path.exists():
        return
    with path.open("rb") as file:
        if _MARK not in file.read(_MARK_BYTES):
            raise ConfigError("EXISTS", f"{path} is there and no report of ours; choose another --output")


def _content(made: Report, chosen: str) -> str:
    if chosen == "html":
        return build_report(made)
    if chosen == "md":
        return build_markdown(made)
    return json.dumps(to_json(made), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str, runs: list[RunDirectory]) -> None:
    """Written under the lock of the run it lies in, if it does."""
    own = next((run for run in runs if path.parent.resolve() == run.path.resolve()), None)
    if own is None:
        io.write_text(path, text)
        return
    with own.lock():
        io.write_text(path, text)
