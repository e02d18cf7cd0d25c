"""What a report is made of, gathered from a run's folder: the same for the page, Markdown and JSON."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tutelage import reading, roles, visible
from tutelage.evaluation import explorer, records, tasks
from tutelage.evaluation.explorer import Explorer
from tutelage.evaluation.show import SHOWN, Shown
from tutelage.evaluation.transfer import Transfer
from tutelage.reports import further, headline
from tutelage.reports.listed import Listed
from tutelage.rundir import RunDirectory

_TRAITS = (
    "Between such models traits can pass that no text shows, through unrelated data too (Nature 2026, "
    "s41586-026-10319-8): leaving texts out does not rule that out, and this page does not measure it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a page is made of; `metrics` are the lines of metrics.jsonl, `recipe` is YAML text.

    Of several runs that are compared, `runs` has their folders by name, and `run` is empty.
    """

    run: str
    transfer: Transfer
    shown: Shown | None = None
    explorer: Explorer | None = None
    tables: Sequence[Listed] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    recipe: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    cautions: Sequence[str] = ()  # what the reader must know before believing the table
    said: Sequence[str] | None = None  # the findings of several runs, in place of those of one
    heading: str = ""  # in place of the sentence about one student
    made_by: str = ""  # the command that makes all of it again, where one does

    @property
    def title(self) -> str:
        """One sentence at the top."""
        return self.heading or headline.title(self.transfer)

    @property
    def findings(self) -> list[str]:
        """What the report says in words, safe to print: `Label: sentence`."""
        said = headline.sentences(self.transfer) if self.said is None else self.said
        return [visible.line(sentence) for sentence in (*said, *self.cautions)]

    @property
    def commands(self) -> dict[str, str]:
        """What to type for each part of the report to be made again."""
        if self.made_by:
            return dict.fromkeys(("report", "table", "again", "curves"), self.made_by)
        folders = [shlex.quote(folder) for folder in (self.runs.values() if self.runs else (self.run,))]
        run = folders[0]
        return {
            "report": f"tutelage report {' '.join(folders)}",
            "table": "; ".join(f"tutelage evaluate {folder}" for folder in folders),
            "again": f"tutelage evaluate {run} --force",
            "curves": f"tutelage train {run}/recipe.yaml --run-dir {run}",
        }

    def show_command(self, text: str) -> str:
        """What shows the next tokens of one text."""
        return f"tutelage show {shlex.quote(self.run)} {shlex.quote(text)}"


def report_of(run: RunDirectory) -> Report:
    """The report of a finished and measured run.

    The numbers are recomputed from the raw records; IntegrityError[REPORT_CHECK] when they differ from what is stored.
    """
    folder = run.evaluation
    transfer, answered, beside = records.read(folder), tasks.read(folder), further.read(folder)
    return Report(
        run=str(run),
        transfer=transfer,
        shown=Shown.of_json(reading.read_json(folder / SHOWN)) if (folder / SHOWN).is_file() else None,
        explorer=explorer.read(folder),
        tables=further.tables(beside, transfer=transfer, tasks=answered),
        metrics=run.metrics(),
        recipe=run.recipe_path.read_text(encoding="utf-8"),
        provenance=reading.read_json(run.provenance_path),
        cautions=[
            *(f"Rare trigger: {one.sentence()}." for one in beside.triggers[:1]),
            *_same_base(yaml.safe_load(run.recipe_path.read_text(encoding="utf-8"))),
        ],
    )


def _same_base(recipe: Mapping[str, Any]) -> list[str]:
    """The caution that traits pass where teacher and student are known to share a base; nothing filters them out."""
    teacher = recipe.get("teacher") or {}
    learners = recipe.get("students") or {roles.STUDENT: recipe.get("student") or {}}
    of_layers = [name for name, one in learners.items() if one.get("layers") or one.get("width")]
    alike = [name for name, one in learners.items() if one.get("model") and one["model"] == teacher.get("model")]
    if not teacher or not (of_layers or alike):
        return []
    names = " and ".join(name if name != roles.STUDENT else "the student" for name in (*of_layers, *alike))
    return [f"Same base: {names} and the teacher began as one model. {_TRAITS}"]
