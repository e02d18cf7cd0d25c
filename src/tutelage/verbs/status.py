"""The verb `status`: how far a generation is, what failed and why, what it cost; also while it runs."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tutelage import console, io
from tutelage.errors import ConfigError
from tutelage.generation import journal as journals
from tutelage.generation.ledger import PICO, Ledger
from tutelage.recipe import load_recipe
from tutelage.rundir import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the journal says now."""

    path: Path
    running: bool
    model: str
    base_url: str
    total: int  # answers that the last call wanted
    done: int  # of them, replies that are final
    outcomes: dict[str, int]  # of them, and of a judge's replies
    older: int  # answers to other requests than the last call wanted
    retried: dict[str, int]  # replies and failures that were, or will be, sent again
    requests: int  # that were paid, or may have been
    max_requests: int | None
    lost: int
    jobs: tuple[str, ...]  # batch jobs whose replies are still to be fetched; empty text: not known to be created
    spent_usd: float
    reserved_usd: float
    left_usd: float | None
    left_s: float | None  # at the speed of the call that runs

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "path": str(self.path)}

    def __str__(self) -> str:
        state = "running" if self.running else "not running"
        lines = [
            f"answers:  {self.done:,} of {self.total:,}  ({self.path}, {state})",
            f"asked:    {self.model} at {self.base_url}",
            f"outcomes: {_counts(self.outcomes) or 'none yet'}",
            f"requests: {self.requests:,}" + (f" of {self.max_requests:,}" if self.max_requests is not None else ""),
        ]
        if self.older:
            lines.append(f"older:    {self.older:,} answers of other settings or prompts, kept")
        if self.jobs:
            lines.append(f"batch:    {', '.join(job or 'one may be there' for job in self.jobs)} (rerun to fetch)")
        if self.retried:
            lines.append(f"again:    {_counts(self.retried)}")
        if self.lost:
            lines.append(f"lost:     {self.lost:,} under way when a process died; they count as spent")
        if self.left_usd is not None:
            money = f"${self.spent_usd:.6g} spent, ${self.reserved_usd:.6g} reserved, ${self.left_usd:.6g} left"
            lines.append(f"money:    {money}")
        if self.left_s is not None:
            lines.append(f"time:     about {round(self.left_s):,} s left")
        return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()))


def status(where: str | Path, *, repair: bool = False) -> Status:
    """The state of the generation of a recipe, or in a folder of answers.

    `repair` keeps the good part of a damaged journal, and the damaged file beside it.  Raises
    IntegrityError[JOURNAL_CORRUPT] for a damaged one, ConfigError[ANSWERS_ABSENT] when nothing was asked yet.
    """
    folder = _folder(Path(where))
    path = folder / journals.NAME
    if RunDirectory(folder).state() != "absent":
        page = RunDirectory(folder).report_path
        raise ConfigError("ANSWERS_ABSENT", f"{folder} is a training run, and status is about answers; see {page}")
    if not path.is_file():
        raise ConfigError("ANSWERS_ABSENT", f"{folder} holds no journal; begin one: tutelage generate RECIPE")
    if repair and (n := journals.repair(folder)):
        console.warning("JOURNAL_CORRUPT", f"{path}: {n} damaged places left out; the damaged file is kept beside it")
    ledger = Ledger()
    journals.require_undamaged(path, journals.read(path, ledger.apply))
    return _status(folder, ledger, running=_is_running(folder))


def _folder(where: Path) -> Path:
    if where.is_dir():
        return where
    teacher = load_recipe(where).teacher
    if teacher is None or teacher.answers is None:
        raise ConfigError("CONFIG", f"{where} names no teacher.answers; give the folder of answers")
    return Path(teacher.answers)


def _is_running(folder: Path) -> bool:
    handle = io.take_lock(folder / journals.LOCK)
    if handle is None:
        return True
    os.close(handle)
    return False


def _status(folder: Path, ledger: Ledger, *, running: bool) -> Status:
    run: dict[str, Any] = dict(ledger.run)
    reserved, settled = ledger.reserved, ledger.settled
    requests, lost = ledger.n_spent, ledger.n_lost
    if not running and ledger.open:  # what a dead process left under way counts as spent
        waited_for = ledger.waited_for
        gone = [amount for number, amount in ledger.open.items() if number not in waited_for]
        reserved, settled = reserved - sum(gone), settled + sum(gone)
        requests, lost = requests + len(gone), lost + len(gone)
    cap = run.get("cap")
    return Status(
        path=folder,
        running=running,
        model=str(run.get("model", "")),
        base_url=str(run.get("base_url", "")),
        total=int(run.get("total", 0)),
        done=ledger.outcomes.total(),
        outcomes={**ledger.outcomes, **{f"judge: {outcome}": n for outcome, n in ledger.judged.items()}},
        older=len(ledger.final) - ledger.n_judged - ledger.outcomes.total(),
        retried=dict(ledger.retried + ledger.released),
        requests=requests,
        max_requests=run.get("max_requests"),
        lost=lost,
        jobs=tuple(job.batch for job in ledger.jobs.values()),
        spent_usd=settled / PICO,
        reserved_usd=reserved / PICO,
        left_usd=max(0, cap - settled - reserved) / PICO if cap is not None else None,
        left_s=_left_s(ledger, run) if running else None,
    )


def _left_s(ledger: Ledger, run: dict[str, Any]) -> float | None:
    n_answers = ledger.outcomes.total()
    n_done = n_answers - int(run.get("done", 0))
    if n_done <= 0 or not ledger.last_at or n_answers >= int(run["total"]):
        return None
    seconds = (datetime.fromisoformat(ledger.last_at) - datetime.fromisoformat(str(run["at"]))).total_seconds()
    return seconds / n_done * (int(run["total"]) - n_answers)
