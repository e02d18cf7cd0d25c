"""One model trained to the end of its plan: steps, held-out losses, checkpoints, metrics, signals."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from tutelage import console, io
from tutelage.errors import IntegrityError, NumericError, ResourceError, Stopped, is_out_of_memory
from tutelage.roles import figure_name, figures_of
from tutelage.rundir import RunDirectory
from tutelage.training import checkpoint
from tutelage.training.callbacks import Callback, Event, Kind
from tutelage.training.compiling import plain
from tutelage.training.tracking import Tracking
from tutelage.training.trainer import StepStats, Trainer
from tutelage.types import Batch

_TENSORS = {"weights": "masters", "optimizer": "optimizer"}  # of a model in a checkpoint, and where a peer has them
_BESIDE = "beside"  # likewise, what its feature terms learn with it


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What happens between the steps; every number counts optimizer steps."""

    n_steps: int
    save_every: int
    evaluate_every: int | None
    keep: int = 2
    patience: int | None = None
    log_every: int = 10
    track: tuple[str, ...] = ()


@dataclass(slots=True)
class Progress:
    """What a checkpoint says beside tensors; JSON by `vars`."""

    seconds: float = 0.0
    n_tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    n_worse: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The outcome: `weights` by model are the masters to save (the average, or the best, where the recipe says so)."""

    weights: dict[str, dict[str, Tensor]]
    step: int
    progress: Progress
    held_out: dict[str, float] = field(default_factory=dict)


def fit(
    trainer: Trainer,
    *,
    run: RunDirectory,
    run_id: str,
    plan: FitPlan,
    held_out: Callable[[], Sequence[Batch]] | None,
    on_step: Callable[[StepStats], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Train to the end or to an early stop, from the newest checkpoint of this run if there is one.

    Raises Stopped after saving when SIGINT or SIGTERM came; a second signal ends the process at once.
    """
    own = _Fit(trainer, run=run, run_id=run_id, plan=plan, held_out=held_out, callbacks=callbacks)
    return own.to_the_end(on_step)


class _Fit:
    """The state of one `fit` call."""

    def __init__(
        self,
        trainer: Trainer,
        *,
        run: RunDirectory,
        run_id: str,
        plan: FitPlan,
        held_out: Callable[[], Sequence[Batch]] | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.trainer, self.run, self.run_id, self.plan, self.held_out = trainer, run, run_id, plan, held_out
        self.callbacks = callbacks
        self.folder = run.checkpoints / trainer.name
        self.parts = (*(_part(name, kind) for name in trainer.peers for kind in _TENSORS), "progress", "running")
        self.parts += tuple(_part(name, _BESIDE) for name, peer in trainer.peers.items() if peer.beside is not None)
        self.progress = Progress()
        self.saved_step: int | None = None
        self.last_held_out: dict[str, float] = {}

    def to_the_end(self, on_step: Callable[[StepStats], None] | None) -> Fitted:
        self._restore()
        title = f"training the {self.trainer.name}"
        models = tuple(self.trainer.peers)
        with (
            Tracking(self.plan.track, run=self.run, run_id=self.run_id) as tracking,
            _signals() as signals,
            console.Progress(
                title, total=self.plan.n_steps, done=self.trainer.step, line_every=self.plan.log_every
            ) as bar,
        ):
            while self.trainer.step < self.plan.n_steps and not self.progress.stopped_early:
                stats = self._step()
                self._record(stats, tracking)
                bar.update(self.trainer.step, _speed(stats), rows=_lines(stats, models))
                if on_step is not None:
                    on_step(stats)
                self._tell("step", {**stats.losses, **{figure_name(n, "total"): v for n, v in stats.totals.items()}})
                self._after_step(tracking)
                if signals:
                    self._stop(signals[0], tracking)
            if self.saved_step != self.trainer.step:
                self._save(tracking)
        self._tell("end", self.last_held_out)
        return Fitted(
            weights=self._chosen_weights(),
            step=self.trainer.step,
            progress=self.progress,
            held_out=self.last_held_out,
        )

    def _step(self) -> StepStats:
        batches = self.trainer.microbatches(self.trainer.step)
        try:
            return self.trainer.train_step(batches)
        except NumericError as error:
            where = self.run.bad / f"step-{self.trainer.step}.json"
            io.make_directory(where.parent)
            rows = [{"row": key} for batch in batches for key in batch.row_keys]
            ids = [batch.view.ids_BT.tolist() for batch in batches]
            io.write_json(where, {"error": error.message, "rows": rows, "token_ids": ids})
            raise NumericError(error.code, f"{error.message}; the batch is in {where}") from error
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.trainer, batches) from error
            raise

    def _tell(self, kind: Kind, figures: Mapping[str, float]) -> None:
        trainer = self.trainer
        models = {name: peer.member.model for name, peer in trainer.peers.items()}
        with plain(models.values()):
            for callback in self.callbacks:
                callback(
                    Event(
                        kind=kind,
                        step=trainer.step,
                        n_steps=self.plan.n_steps,
                        run=self.run.path,
                        name=trainer.name,
                        figures=dict(figures),
                        models=models,
                    )
                )

    def _record(self, stats: StepStats, tracking: Tracking) -> None:
        self.progress.seconds += stats.seconds
        self.progress.n_tokens += stats.n_tokens
        for name in stats.totals:
            row: dict[str, io.Json] = {
                "step": stats.step,
                "model": name,
                "tokens": self.progress.n_tokens,
                **{figure_name(name, term): loss for term, loss in stats.losses_of(name).items()},
                figure_name(name, "total"): stats.totals[name],
                figure_name(name, "gradient_norm"): stats.gradient_norms[name],
                figure_name(name, "learning_rate"): stats.learning_rates[name],
            }
            self.run.append_metrics(row)
            tracking.write(row)
        speed, name = stats.n_tokens / stats.seconds, self.trainer.name
        self.run.append_timings({"step": stats.step, "model": name, "seconds": stats.seconds, "rate_tok_per_s": speed})

    def _after_step(self, tracking: Tracking) -> None:
        step, plan = self.trainer.step, self.plan
        is_last = step == plan.n_steps
        improved = False
        if plan.evaluate_every is not None and (step % plan.evaluate_every == 0 or is_last):
            improved = self._evaluate(tracking)
            self._tell("evaluate", self.last_held_out)
        if improved or step % plan.save_every == 0 or is_last or self.progress.stopped_early:
            self._save(tracking)

    def _evaluate(self, tracking: Tracking) -> bool:
        """Whether the held-out objective (the weighted sum of the terms) is the best so far."""
        assert self.held_out is not None, "recipe rules: evaluate_every needs held-out rows"
        name, step = self.trainer.name, self.trainer.step
        losses = self.trainer.evaluate(self.held_out())
        self.last_held_out = losses
        objective = self.trainer.objective(losses)
        if not math.isfinite(objective):
            raise NumericError(
                "NONFINITE",
                f"held-out loss of the {name} is {objective} at step {step}; the newest checkpoint is intact; "
                "lower training.learning_rate and start anew with --force",
            )
        for model in self.trainer.peers:
            row: dict[str, io.Json] = {"step": step, "model": model, "tokens": self.progress.n_tokens}
            row |= {figure_name(model, f"held_out/{term}"): value for term, value in figures_of(model, losses).items()}
            self.run.append_metrics(row)
            tracking.write(row)
        if not self.trainer.all_have_begun:
            return False
        improved = self.progress.best_loss is None or objective < self.progress.best_loss
        if improved:
            self.progress.best_step, self.progress.best_loss, self.progress.n_worse = step, objective, 0
        else:
            self.progress.n_worse += 1
            self.progress.stopped_early = self.plan.patience is not None and self.progress.n_worse >= self.plan.patience
        return improved

    def _save(self, tracking: Tracking) -> None:
        trainer = self.trainer
        tracking.flush()
        self.run.sync_metrics()
        fresh = checkpoint.save(
            self.folder,
            step=trainer.step,
            run_id=self.run_id,
            tensors={
                _part(name, kind): getattr(peer, home).state()
                for name, peer in trainer.peers.items()
                for kind, home in _TENSORS.items()
            }
            | {_part(n, _BESIDE): peer.beside.state() for n, peer in trainer.peers.items() if peer.beside is not None},
            state={"progress": dict(self._progress_json()), "running": dict(trainer.running)},
            required=self.parts,
        )
        self.saved_step = trainer.step
        protect = {self.progress.best_step} if self.progress.best_step is not None else set()
        checkpoint.rotate(self.folder, run_id=self.run_id, keep=self.plan.keep, protect=protect, fresh=fresh)
        self._tell("checkpoint", self.last_held_out)

    def _progress_json(self) -> Mapping[str, io.Json]:
        return {name: getattr(self.progress, name) for name in Progress.__dataclass_fields__}

    def _restore(self) -> None:
        found = checkpoint.newest(self.folder, run_id=self.run_id, required=self.parts)
        for name in {self.trainer.name, *self.trainer.peers}:
            self.run.rewind_metrics(found.step if found else 0, model=name)
        if found is None:
            return
        for name, peer in self.trainer.peers.items():
            peer.masters.load(found.tensors[_part(name, "weights")])
            peer.optimizer.load(found.tensors[_part(name, "optimizer")])
            if peer.beside is not None:
                peer.beside.load(found.tensors[_part(name, _BESIDE)])
        self.trainer.running = dict(found.state["running"])
        self.trainer.step = self.saved_step = found.step
        self.progress = Progress(**found.state["progress"])
        if 0 < found.step < self.plan.n_steps:
            console.note("RESUMED", f"the {self.trainer.name} goes on from step {found.step} of {self.plan.n_steps}")

    def _stop(self, number: int, tracking: Tracking) -> None:
        if self.saved_step != self.trainer.step:
            self._save(tracking)
        raise Stopped(f"saved step {self.trainer.step}; rerun the same command to continue", signal_number=number)

    def _chosen_weights(self) -> dict[str, dict[str, Tensor]]:
        """The best checkpoint's after an early stop, the moving average where there is one, else the last."""
        if self.plan.patience is None or self.progress.best_step in (None, self.trainer.step):
            return {name: peer.optimizer.average or peer.masters.state() for name, peer in self.trainer.peers.items()}
        best = self.progress.best_step
        found = checkpoint.newest(self.folder, run_id=self.run_id, required=self.parts, step=best)
        if found is None:
            raise IntegrityError("CKPT_INCOMPLETE", f"{self.folder}: the best step, {best}, is gone; use --force")
        return {name: saved_weights(found, name) for name in self.trainer.peers}


def saved_weights(found: checkpoint.Checkpoint, name: str) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model to save: its moving average where there is one, else its weights."""
    optimizer = found.tensors[_part(name, "optimizer")]
    average = {key.split("/", 1)[1]: value for key, value in optimizer.items() if key.startswith("average/")}
    return average or found.tensors[_part(name, "weights")]


def _part(name: str, kind: str) -> str:
    return f"{name}.{kind}"


def out_of_memory(trainer: Trainer, batches: Sequence[Batch]) -> ResourceError:
    """The error for an out-of-memory, with the settings that need less."""
    rows, length = max((tuple(batch.view.ids_BT.shape) for batch in batches), default=(1, 0))
    where = trainer.compute.device
    smaller = f"training.micro_batch={rows // 2} (now {rows}) or auto, " if rows > 1 else ""
    return ResourceError(
        "MEMORY",
        f"out of memory on {where} at step {trainer.step} with micro-batches of {rows} x {length} tokens; set "
        f"{smaller}training.gradient_checkpointing=true, training.chunk=128, or "
        "training.precision=bfloat16; the same command then needs --force, or starts anew in another --run-dir",
    )


def _speed(stats: StepStats) -> str:
    return f"{stats.n_tokens / stats.seconds:.0f} tok/s"


def _lines(stats: StepStats, models: Sequence[str]) -> dict[str, str]:
    """One line a model."""
    return {
        name: "  ".join(f"{term} {value:.3f}" for term, value in stats.losses_of(name).items()) or "does not train"
        for name in models
    }


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is put into the list; the second ends the process at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def remember(number: int, _frame: object) -> None:
        seen.append(number)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        console.say("stopping after this step; once more ends at once")

    before = {each: signal.signal(each, remember) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
