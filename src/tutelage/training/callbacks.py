"""Functions of the user's own that hear of a run's steps, evaluations, checkpoints and end.

`training.callbacks` names them, `path.py:name` or `module:name`; each is called with one `Event`, in this process, and
what it returns is not used.  An exception stops the run, whose newest checkpoint stays; the same command goes on.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

from tutelage.errors import ConfigError

Kind: TypeAlias = Literal["step", "evaluate", "checkpoint", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What has just been done; after a resume the steps since the last checkpoint are told again."""

    kind: Kind
    step: int  # finished steps
    n_steps: int
    run: Path
    name: str  # what trains: student, family, control, controls
    figures: Mapping[str, float] = field(default_factory=dict)  # MODEL/FIGURE: of the step, or held-out losses; nats
    models: Mapping[str, nn.Module] = field(default_factory=dict)  # those that train, to look at and not to change


@dataclass(frozen=True, slots=True)
class Callback:
    """One function, and how the user named it."""

    spec: str
    function: Callable[[Event], object]

    def __call__(self, event: Event) -> None:
        """Calls it; ConfigError[CALLBACK] with file and line for what it raises."""
        try:
            self.function(event)
        except (Exception, SystemExit) as error:
            fix = "correct it, and the same command goes on from the newest checkpoint"
            where = f"training.callbacks: {self.spec} at {event.kind} {event.step}"
            raise ConfigError("CALLBACK", f"{where} {_raised(error)}; {fix}") from error


def loaded(specs: Sequence[str]) -> tuple[Callback, ...]:
    """The functions that the recipe names; ConfigError[CALLBACK] for one that cannot be imported or called."""
    modules: dict[str, object] = {}  # one for all functions of a file: they may share what stands in it
    return tuple(Callback(spec, _function(spec, modules)) for spec in specs)


def _function(spec: str, modules: dict[str, object]) -> Callable[[Event], object]:
    place, _, name = spec.rpartition(":")
    try:
        if place not in modules:
            modules[place] = _module_in(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        module = modules[place]
        function = getattr(module, name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        fix = "expected path.py:name or module:name of a function of one event"
        raise ConfigError("CALLBACK", f"training.callbacks: {spec} {_raised(error)}; {fix}") from error
    if not callable(function):
        raise ConfigError("CALLBACK", f"training.callbacks: {spec} is a {type(function).__name__}, no function")
    return function  # type: ignore[no-any-return]  # callable() says no more


def _module_in(path: Path) -> object:
    """The module in a file; what lies beside it can be imported, and hides nothing else."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    described = importlib.util.spec_from_file_location(f"callback_{path.stem}", path)
    assert described is not None and described.loader is not None, "a path that ends in .py"
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module
    described.loader.exec_module(module)
    return module


def _raised(error: BaseException) -> str:
    """What was raised, and the last line of the user's own code on the way there."""
    said = f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{said} ({error.filename}, line {error.lineno})"
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<frozen"))]
    own = [f for f in frames if "site-packages" not in f.filename and f"{os.sep}lib{os.sep}python" not in f.filename]
    frame = (own or frames)[-1] if frames else None
    return f"{said} ({frame.filename}, line {frame.lineno})" if frame is not None else said
