"""What techniques have in common: whom they need."""

from tutelage.planning.facts import Facts

_NO_WEIGHTS = "needs the teacher's whole distribution, and this teacher is behind an endpoint"
_SEVERAL = "needs one teacher, and the recipe averages several"
_NO_TEACHER = "needs a teacher, and the recipe has none"
_NO_LAYERS = "shows no layers of a teacher that stays as it is, and loss has terms with features; leave them out"


def weights(facts: Facts) -> str:
    """Why a technique that asks for whole distributions cannot be done, "" when it can."""
    if facts.teacher is not None:
        return ""
    return _NO_TEACHER if facts.endpoint is None else _NO_WEIGHTS


def a_teacher(facts: Facts) -> str:
    """Why a technique that asks for text cannot be done, "" when it can."""
    if facts.members > 1:
        return f"{_SEVERAL}; several that write are named in teacher.writers"
    return _NO_TEACHER if facts.teacher is None and facts.endpoint is None else ""


def no_layers(facts: Facts) -> str:
    """Why a technique without a live teacher that stays as it is cannot serve the loss, "" when it can."""
    return _NO_LAYERS if facts.compares_layers else ""


def one_teacher(facts: Facts) -> str:
    """Why a technique whose teacher is one model cannot be done, "" when it can."""
    if reason := weights(facts):
        return reason
    return _SEVERAL if facts.members > 1 else ""
