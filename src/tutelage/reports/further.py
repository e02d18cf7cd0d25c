"""What is measured beside the transfer: read from a run's folder, and its tables in the order of the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.evaluation import coverage, harness, missing, overlap, probes, triggers, writing
from tutelage.evaluation.harness import TaskScores
from tutelage.evaluation.missing import Missing
from tutelage.evaluation.overlap import Overlap
from tutelage.evaluation.probes import Probe
from tutelage.evaluation.tasks import TaskResult
from tutelage.evaluation.transfer import Transfer
from tutelage.evaluation.triggers import Trigger
from tutelage.evaluation.writing import Writing
from tutelage.reports import contingency
from tutelage.reports import coverage as coverage_table
from tutelage.reports import harness as harness_table
from tutelage.reports import missing as missing_table
from tutelage.reports import overlap as overlap_table
from tutelage.reports import probes as probe_table
from tutelage.reports import tasks as task_table
from tutelage.reports import triggers as trigger_table
from tutelage.reports import writing as writing_table
from tutelage.reports.listed import Listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """What was found; None where it was not measured."""

    overlap: Overlap | None = None
    probes: tuple[Probe, ...] = ()
    writing: Writing | None = None
    harness: tuple[TaskScores, ...] = ()
    missing: tuple[Missing, ...] = ()
    triggers: tuple[Trigger, ...] = ()

    def json(self, transfer: Transfer) -> dict[str, Any]:
        """For programs: what there is, by name."""
        found: dict[str, Any] = {"overlap": self.overlap.json() if self.overlap is not None else None}
        found["coverage"] = coverage.json_of(coverage.coverage_of(transfer)) or None
        found["probes"] = probes.json_of(self.probes) or None
        found["writing"] = self.writing.json() if self.writing is not None else None
        found["harness"] = [one.json() for one in self.harness] or None
        found["missing"] = missing.json_of(self.missing) or None
        found["triggers"] = triggers.json_of(self.triggers) or None
        return {name: value for name, value in found.items() if value is not None}


def read(folder: Path) -> Further:
    """What was measured, computed again from its raw records."""
    asked = harness.read(folder)
    return Further(
        overlap=overlap.read(folder),
        probes=probes.read(folder),
        writing=writing.read(folder),
        harness=asked,
        missing=missing.read(folder, harness=bool(asked)),
        triggers=triggers.read(folder),
    )


def tables(found: Further, *, transfer: Transfer, tasks: TaskResult | None) -> list[Listed]:
    """The tables of what was measured, in the order in which they are shown."""
    all_of_them = (
        trigger_table.listed(found.triggers),
        task_table.listed(tasks),
        coverage_table.listed(coverage.coverage_of(transfer)),
        overlap_table.listed(found.overlap, transfer),
        contingency.listed(tasks),
        harness_table.listed(found.harness),
        probe_table.listed(found.probes),
        writing_table.listed(found.writing),
        missing_table.listed(found.missing),
    )
    return [table for table in all_of_them if table is not None]
