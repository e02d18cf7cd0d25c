"""The transfer in words: who wins what, by how much, and whether that is more than noise.

The roles are the run's names, see `roles.py`: students, their controls (same start, same tokens, no teacher), and what
they were before.
"""

import math

from tutelage import roles, visible
from tutelage.evaluation.stats import Difference, quantile_95
from tutelage.evaluation.transfer import HELD_OUT, OUT_OF_DOMAIN, SetResult, Transfer

_TRIFLE_NATS = 0.005


def trained(transfer: Transfer) -> list[str]:
    """The models that this run trained: what "best" is said of."""
    return roles.trained(transfer.models)


def title(transfer: Transfer) -> str:
    """One sentence: what the student is, and how much of the teacher is in it."""
    result, names = transfer.sets.get(HELD_OUT), roles.students(transfer.models)
    if len(names) > 1:
        taught = " of one teacher" if transfer.teacher is not None else ""
        return f"{len(names)} students{taught}: {', '.join(visible.line(name) for name in names)}."
    name = names[0] if names else roles.STUDENT
    agreement = result.estimates.get(name, {}).get("top1_agreement") if result else None
    student, teacher = transfer.costs.get(name), transfer.costs.get(transfer.teacher or "")
    smaller = (
        f"{student.parameters / teacher.parameters:.0%} of the teacher’s parameters" if student and teacher else ""
    )
    agrees = f"agrees with the teacher’s first choice on {agreement.value:.0%} of tokens" if agreement else ""
    if smaller and agrees:
        return f"With {smaller}, the student {agrees}."
    return f"The student has {smaller}." if smaller else f"The student {agrees}." if agrees else "Transfer report."


def sentences(transfer: Transfer) -> list[str]:
    """Held-out loss, then imitation, then what was lost outside the training text: each only where it was measured."""
    result, names = transfer.sets.get(HELD_OUT), roles.students(transfer.models)
    if result is None:
        return []
    said = []
    for name in names:
        of_it = []
        if roles.control(name) in result.estimates:
            of_it = [_loss(result, name), _imitation(result, name)]
        of_it += [_progress(result, name), _domains(transfer, name), _calibration(result, name)]
        of_it += [_weakest(result)] if len(names) == 1 else []
        said += [s if len(names) == 1 else f"{name}, {s[0].lower()}{s[1:]}" for s in of_it if s]
    return [visible.line(s) for s in (*said, *_unscored(transfer))]


def _loss(result: SetResult, name: str) -> str:
    d = result.difference("held_out_loss", first=name, second=roles.control(name))
    if d is None:
        return ""
    if d.n < 2:
        return "Held-out loss: one sequence tells no error, so student and control cannot be told apart; hold out more."
    if not d.decided:
        return (
            f"Held-out loss: student and control are not shown to differ ({_signed(d)} nats, paired over {d.n} "
            "sequences): whether having a teacher helped or harmed the prediction of this text is within noise."
        )
    if d.value < 0:
        return (
            f"Held-out loss: the student is lower than the control by {_size(d)} nats (paired over {d.n} sequences): "
            "learning from the teacher predicts this text better than plain fine-tuning on the same tokens."
        )
    return (
        f"Held-out loss: the control is lower than the student by {_size(d)} nats (paired over {d.n} sequences): "
        "plain fine-tuning fits this text better. The loss asks who predicts the text; KL to the teacher asks who "
        "imitates the teacher."
    )


def _imitation(result: SetResult, name: str) -> str:
    d = result.difference("kl_to_teacher", first=name, second=roles.control(name))
    if d is None:
        return ""
    if d.n < 2:
        return ""
    if not d.decided:
        return f"Imitation: student and control are not shown to differ in KL to the teacher ({_signed(d)} nats)."
    both = {"student": name, "control": roles.control(name)}
    winner, loser = ("student", "control") if d.value < 0 else ("control", "student")
    kl = {role: result.estimates[model]["kl_to_teacher"].value for role, model in both.items()}
    share = kl[winner] / kl[loser]
    return (
        f"Imitation: the {winner} is closer to the teacher: its KL is lower by {_size(d)} nats, "
        f"{share:.2f} of the {loser}’s."
    )


def _progress(result: SetResult, name: str) -> str:
    before, after = (result.estimates.get(m, {}).get("kl_to_teacher") for m in (roles.before(name), name))
    if before is None or after is None:
        return ""
    return f"Progress: training took the student’s KL to the teacher from {before.value:.2f} to {after.value:.2f} nats."


def _domains(transfer: Transfer, student: str) -> str:
    """The student's loss above the teacher's, on its own kind of text and elsewhere; the two sets are independent."""
    if transfer.teacher is None or OUT_OF_DOMAIN not in transfer.sets:
        return ""
    inside, outside = (
        transfer.sets[name].difference("held_out_loss", first=student, second=transfer.teacher)
        for name in (HELD_OUT, OUT_OF_DOMAIN)
    )
    if inside is None or outside is None:
        return ""
    more, stderr = outside.value - inside.value, math.hypot(inside.stderr, outside.stderr)
    decided = abs(more) > quantile_95(min(inside.n, outside.n)) * stderr
    verdict = (
        "it lost more there"
        if decided and more > 0
        else "it lost less there"
        if decided
        else "no difference beyond noise"
    )
    return (
        f"What was lost: the student’s loss is {_above(inside)} the teacher’s on its own kind of text, and "
        f"{_above(outside)} it out of domain, on text of a kind it was not trained on: {verdict}."
    )


def _calibration(result: SetResult, name: str) -> str:
    """Only where the temperature that mends it differs from 1 by more than noise and saves more than a trifle."""
    of_it = result.estimates.get(name, {})
    found, saved = of_it.get("mending_temperature"), of_it.get("saved_by_temperature")
    if found is None or saved is None or saved.value < _TRIFLE_NATS:
        return ""
    half = quantile_95(found.n) * found.stderr
    if abs(found.value - 1) <= half:
        return ""
    verdict = "too sure of itself" if found.value > 1 else "not sure enough"
    return (
        f"Calibration: the student is {verdict}: dividing its logits by {found.value:.2f} ± {found.stderr:.2f} would "
        f"lower its held-out loss by {saved.value:.3f} nats."
    )


def _weakest(result: SetResult) -> str:
    """The slices that are worse than the whole by more than noise, at most three; of a family nothing is said."""
    found = [result.slices[i] for i in result.worst]
    gaps = [(s.name, s.against_whole) for s in found if s.against_whole is not None and s.against_whole.is_sure]
    if not gaps:
        return ""
    named = "; ".join(f"{name} (+{_size(gap)})" for name, gap in gaps[:3])
    measure = "KL to the teacher" if any("kl_to_teacher" in by for by in result.estimates.values()) else "loss"
    return f"Weakest, in {measure} above its mean: {named}; nats, more than noise among {len(result.slices)} slices."


def _unscored(transfer: Transfer) -> list[str]:
    return [
        f"{model.replace('_', ' ')}: {n} of {result.n_sequences} sequences have no finite score and are left out."
        for result in transfer.sets.values()
        for model, n in result.n_unscored.items()
        if n
    ]


def _signed(d: Difference) -> str:
    return f"{d.value:+.3f} ± {_error(d)}".replace("-", "−")


def _above(d: Difference) -> str:
    return f"{_size(d)} nats {'above' if d.value >= 0 else 'below'}"


def _size(d: Difference) -> str:
    return f"{abs(d.value):.3f} ± {_error(d)}"


def _error(d: Difference) -> str:
    return f"{d.stderr:.3f}" if math.isfinite(d.stderr) else "?"
