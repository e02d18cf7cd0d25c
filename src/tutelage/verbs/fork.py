"""A fork: a new run that starts from the weights of another one, and keeps them, whatever becomes of its source."""

from collections.abc import Mapping

from torch import Tensor

from tutelage import console
from tutelage.errors import ConfigError
from tutelage.models import load, save
from tutelage.rundir import RunDirectory, Started
from tutelage.training import checkpoint
from tutelage.training.prepare import Prepared

_FOLDER = "start"  # below checkpoints/
_KEPT = "start.weights"
_PARTS = (_KEPT,)


def start_from_source(prepared: Prepared, started: Started, *, name: str) -> None:
    """Put the source's weights in the place of the student's start: those of its model `name`, or its newest step's."""
    if started.source is None or start_from_kept(prepared, started.run):
        return
    weights, step = _weights_of(started.source, name)
    _put(prepared, weights, where=str(started.source))
    folder = started.run.checkpoints / _FOLDER
    checkpoint.save(folder, step=step, run_id=started.run_id, tensors={_KEPT: weights}, state={}, required=_PARTS)
    console.note("RESUMED", f"a fork of {started.source} from its step {step}")


def start_from_kept(prepared: Prepared, run: RunDirectory) -> bool:
    """The same from what the fork has kept; False when `run` is none, or keeps nothing yet."""
    found = checkpoint.newest(run.checkpoints / _FOLDER, run_id=run.run_id, required=_PARTS)
    if found is None:
        return False
    _put(prepared, found.tensors[_KEPT], where=str(run))
    return True


def _weights_of(source: RunDirectory, name: str) -> tuple[dict[str, Tensor], int]:
    """(weights, step): what a finished run has saved, an average or its best step, else the newest checkpoint."""
    part = f"{name}.weights"
    found = checkpoint.newest(source.checkpoints / name, run_id=source.run_id, required=(part,))
    if found is None:
        raise ConfigError("CONFIG", f"--fork: {source} has no checkpoint yet; leave --fork out")
    if source.state() == "finished":
        model = load.load_model(str(source.model(name)), dtype="auto", device="cpu")
        return {key: parameter.detach() for key, parameter in model.named_parameters()}, found.step
    return found.tensors[part], found.step


def _put(prepared: Prepared, weights: Mapping[str, Tensor], *, where: str) -> None:
    head = prepared.student.get_output_embeddings().weight
    if any(len(weight) == prepared.n_vocabulary < len(head) for weight in weights.values() if weight.ndim == head.ndim):
        prepared.student.resize_token_embeddings(
            prepared.n_vocabulary
        )  # the source's padding was cut when it was saved
    own = {key: parameter.shape for key, parameter in prepared.student.named_parameters()}
    if own != {key: weight.shape for key, weight in weights.items()}:
        raise ConfigError("CONFIG", f"--fork: the student of {where} has another shape than this recipe's")
    dtype = next(prepared.student.parameters()).dtype
    prepared.student = save.with_weights(prepared.student, weights, dtype=dtype)
