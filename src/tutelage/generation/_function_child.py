"""The process in which a function of the user's is called: a JSON line in, a JSON line out.  Knows nothing of tutelage.

It is run by its path, so that the user's code and its imports do not wait for ours.  What the function prints goes to
stderr, since stdout carries the replies.
"""

import faulthandler
import hashlib
import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any


def load(spec: str) -> tuple[Callable[..., Any], str]:
    """The function and the file that its module is in."""
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        sys.path.append(os.path.dirname(place))  # what lies beside it can be imported, and hides nothing else
        described = importlib.util.spec_from_file_location("verifier_of_the_recipe", place)
        if described is None or described.loader is None:
            raise ImportError(f"{place} is no Python file")
        module = importlib.util.module_from_spec(described)
        sys.modules[described.name] = module
        described.loader.exec_module(module)
    else:
        sys.path.append(os.getcwd())
        module = importlib.import_module(place)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, no function")
    return function, str(module.__file__ or "")


def said_of(value: Any) -> dict[str, Any]:
    """What a returned value is, as JSON."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool):
        return {"value": value}
    if isinstance(value, int | float):
        return {"value": float(value)} if math.isfinite(value) else {"type": str(float(value))}
    return {"type": type(value).__name__}


def main() -> None:
    """Says that it is ready, then answers until stdin ends."""
    arguments = json.loads(sys.argv[1])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # there is no stderr
        os.dup2(nothing, 1)
    sys.path[:] = arguments["path"]

    def say(**fields: Any) -> None:
        data = json.dumps(fields).encode() + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    try:
        function, file = load(arguments["spec"])
        with open(file, "rb") as source:
            digest = hashlib.sha256(source.read()).hexdigest()
    except BaseException as error:  # whatever a module does when it is imported is said, not raised
        return say(raised=f"{type(error).__name__}: {error}"[:300])
    say(sha256=digest)
    for line in requests:
        # Should our parent be gone when the function never ends, nobody else would stop it.
        faulthandler.dump_traceback_later(arguments["watchdog_s"], exit=True, file=nothing)
        try:
            said = said_of(function(**json.loads(line)))
        except BaseException as error:
            said = {"raised": type(error).__name__[:100], "message": str(error)[:300]}
        faulthandler.cancel_dump_traceback_later()
        say(**said)
    return None


if __name__ == "__main__":
    main()
