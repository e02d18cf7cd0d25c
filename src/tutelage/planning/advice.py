"""What to do with a plan's numbers: a recommendation with its reasons, and when not to distil.

Whether distilling pays at all follows Busbridge et al., Distillation Scaling Laws, arXiv:2502.08606: with enough data a
student reaches the same loss without a teacher, so it pays where the teacher is there already or serves several
students; and a student far below its teacher learns less from it than from a smaller one (the capacity gap; also
Mirzadeh et al., arXiv:1902.03393).
"""

from dataclasses import dataclass

from tutelage.planning.estimate import Plan

GAP = 10.0  # of a student that is smaller than its teacher by more, the gap is told
_WORTH_A_CACHE = 1.5  # epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`technique` is what to do, `reasons` say why, `doubts` what speaks against distilling."""

    technique: str
    reasons: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def advise(plan: Plan) -> Advice:
    """From who can be asked for what, how often the text is read, and how many students there are."""
    technique, reason = _technique(plan)
    return Advice(technique=technique, reasons=(reason, *_more_reasons(plan, technique)), doubts=tuple(_doubts(plan)))


def _technique(plan: Plan) -> tuple[str, str]:
    possible, epochs = plan.possible, plan.facts.text.epochs
    if plan.facts.teacher_is_new and "co" in possible:
        return "co", "the teacher has to be trained anyway, and one pass trains both"
    if "cached" in possible and (epochs >= _WORTH_A_CACHE or "soft" not in possible):
        if "soft" not in possible:
            return "cached", "the teacher does not fit beside the student, and a cache asks it before"
        return "cached", f"the text is read {epochs:.3g} times, and a cache asks the teacher once"
    if "soft" in possible:
        return "soft", "the teacher's whole distribution is there, and no text is read again"
    if "grey" in possible:
        return "grey", "the endpoint gives log-probabilities, which say more a token than the text alone"
    if "hard" in possible:
        return "hard", "the endpoint gives text alone"
    if "control" not in possible:
        return "none", "no technique fits into the memory of this machine"
    if plan.facts.teacher is not None or plan.facts.endpoint is not None:
        return "control", "nothing that asks the teacher is possible here"
    return "control", "there is no teacher"


def _more_reasons(plan: Plan, technique: str) -> list[str]:
    reasons = []
    if technique in ("soft", "cached"):
        soft, cached = (next(e for e in plan.estimates if e.name == name) for name in ("soft", "cached"))
        if soft.flops is not None and cached.flops is not None:
            saved = soft.flops.teacher / cached.flops.teacher if cached.flops.teacher else 1.0
            reasons.append(
                f"every further run from the cache computes none of the teacher's {cached.flops.teacher:.2g} operations"
                + (f", and this one {saved:.2g} times fewer of them" if saved > 1.2 else "")
            )
    if len(plan.facts.students) > 1 and technique in ("soft", "cached"):
        reasons.append(f"{len(plan.facts.students)} students share each answer of the teacher in one run")
    return reasons


def _doubts(plan: Plan) -> list[str]:
    facts, doubts = plan.facts, []
    for name, student in facts.students.items():
        if facts.teacher is not None and student.parameters * GAP < facts.teacher.parameters:
            ratio = facts.teacher.parameters / student.parameters
            doubts.append(
                f"{name} has 1/{ratio:.3g} of its teacher's parameters: below about 1/{GAP:.0f} a student learns less "
                "from it; compare with a smaller teacher, or with one between"
            )
    co, control = plan.possible.get("co"), plan.possible.get("control")
    if facts.teacher_is_new and co is not None and control is not None and co.flops and control.flops:
        doubts.append(
            f"a teacher that does not exist yet pays only if it serves several students or is wanted itself: training "
            f"it along costs {co.flops.total / control.flops.total:.3g} times the students alone, which that many more "
            "tokens of text would cost too"
        )
    return doubts
