"""A fork: a new run that starts from the weights of another one, and keeps them, whatever becomes of its source."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from torch import Tensor

from tutelage import console, roles
from tutelage.errors import ConfigError
from tutelage.models import load, save
from tutelage.recipe import Recipe, load_recipe
from tutelage.rundir import START_OVER, RunDirectory, Started
from tutelage.training import checkpoint
from tutelage.training.prepare import Prepared

_FOLDER = "start"  # below checkpoints/


def start_from_source(prepared: Prepared, started: Started) -> None:
    """Put the source's weights in the place of the models' starts: those it has saved, or those of its newest step."""
    if started.source is None or start_from_kept(prepared, started.run):
        return
    weights, step = _weights_of(started.source, _models(prepared))
    for name, own in weights.items():
        _put(prepared, name, own, where=str(started.source))
    checkpoint.save(
        started.run.checkpoints / _FOLDER,
        step=step,
        run_id=started.run_id,
        tensors={_part(name): own for name, own in weights.items()},
        state={},
        required=[_part(name) for name in weights],
    )
    console.note("RESUMED", f"a fork of {started.source} from its step {step}")


def require_same_models(source: RunDirectory, recipe: Recipe) -> None:
    """ConfigError, before anything is made, when a run has not trained the models that this recipe trains."""
    if (name := next(iter(_adapted(recipe)), None)) is not None:
        _refuse(source, name, f"{name} has adapters (lora), which a finished run has merged")
    if (name := next(iter(_mixed(recipe)), None)) is not None:
        _refuse(source, name, f"{name} has init, and a fork takes the weights as they are", also=", with init")
    theirs, ours = (_names(each) for each in (load_recipe(source.recipe_path), recipe))
    if theirs != ours:
        raise ConfigError(
            "CONFIG",
            f"--fork: this recipe trains {', '.join(ours)}, and {source} has trained {', '.join(theirs)}; name the "
            "same students, or start from one of its models: student.model=RUN/models/NAME",
        )


def can_fork(recipe: Recipe) -> bool:
    """Whether a run of this recipe can start from the weights of another one."""
    return not _adapted(recipe) and not _mixed(recipe)


def _adapted(recipe: Recipe) -> list[str]:
    return [name for name, learner in recipe.learners.items() if learner.section.lora is not None]


def _mixed(recipe: Recipe) -> list[str]:
    """The students whose start is partly random."""
    return [name for name, learner in recipe.learners.items() if learner.section.init is not None]


def _refuse(source: RunDirectory, name: str, reason: str, *, also: str = "") -> NoReturn:
    way = f"start from the model that {source} saved: student.model={source.model(name)}{also}"
    if source.state() != "finished":
        way = f"{source} has saved no model yet; {START_OVER}"
    raise ConfigError("CONFIG", f"--fork: {reason}; {way}")


def _names(recipe: Recipe) -> list[str]:
    return sorted([*([roles.TEACHER] if recipe.trains_teacher else []), *recipe.learners])


def start_from_kept(prepared: Prepared, run: RunDirectory) -> bool:
    """The same from what the fork has kept; False when `run` is none, or keeps nothing yet."""
    found = checkpoint.newest(run.checkpoints / _FOLDER, run_id=run.run_id)
    if found is None:
        return False
    for name in _models(prepared):
        _put(prepared, name, found.tensors[_part(name)], where=str(run))
    return True


def _models(prepared: Prepared) -> list[str]:
    """The models that a run trains and a fork goes on from."""
    return [*([roles.TEACHER] if prepared.teacher_start is not None else []), *prepared.students]


def _part(name: str) -> str:
    return f"{name}.weights"


def _weights_of(source: RunDirectory, names: Sequence[str]) -> tuple[dict[str, dict[str, Tensor]], int]:
    """(weights, step): what a finished run has saved, averages or its best step, else the newest checkpoint."""
    folder = source.checkpoints / (names[0] if len(names) == 1 else roles.FAMILY)
    found = checkpoint.newest(folder, run_id=source.run_id, required=[_part(name) for name in names])
    if found is None:
        raise ConfigError("CONFIG", f"--fork: {source} has no checkpoint yet; {START_OVER}")
    if source.state() != "finished":
        return {name: found.tensors[_part(name)] for name in names}, found.step
    saved = {}
    for name in names:
        model = load.load_model(str(source.model(name)), dtype="auto", device="cpu")
        saved[name] = {key: parameter.detach() for key, parameter in model.named_parameters()}
    return saved, found.step


def _put(prepared: Prepared, name: str, weights: Mapping[str, Tensor], *, where: str) -> None:
    model = prepared.teacher_start if name == roles.TEACHER else prepared.students[name]
    assert model is not None
    head = model.get_output_embeddings().weight
    if any(len(weight) == prepared.n_vocabulary < len(head) for weight in weights.values() if weight.ndim == head.ndim):
        model.resize_token_embeddings(prepared.n_vocabulary)  # the source's padding was cut when it was saved
    own = {key: parameter.shape for key, parameter in model.named_parameters()}
    if own != {key: weight.shape for key, weight in weights.items()}:
        raise ConfigError("CONFIG", f"--fork: the {name} of {where} has another shape than this recipe's")
    started = save.with_weights(model, weights, dtype=next(model.parameters()).dtype)
    if name == roles.TEACHER:
        prepared.teacher_start = started
    else:
        prepared.students[name] = started
