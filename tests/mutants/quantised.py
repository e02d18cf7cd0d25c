"""Bugs of students that learn with their weights rounded to a grid of integers."""

from tests.mutants.mutant import Mutant

GRID = "tests/models/test_grid.py::"
RUN = "tests/verbs/test_rounded_students.py::"
EXACT = GRID + "test_a_weight_moves_by_half_a_scale_at_most_and_integers_times_scales_are_it_exactly"
STRAIGHT = GRID + "test_the_gradient_of_a_weight_is_the_plain_gradient_at_what_it_is_rounded_to"

QUANTISED = (
    Mutant(
        id="M550",
        what="a scale rounded down, so that the largest weight lies beyond the last integer",
        file="models/grid.py",
        old="bits_OG = scales_OG.view(torch.int32) + (1 << (dropped - 1))",
        new="bits_OG = scales_OG.view(torch.int32)",
        oracles=(
            GRID + "test_the_largest_of_a_group_lies_on_the_last_integer_whatever_its_scale_was_rounded_to[int8]",
        ),
    ),
    Mutant(
        id="M551",
        what="scales of all bits: what is saved in bfloat16 lies beside the grid",
        file="models/grid.py",
        old="return (bits_OG & -(1 << dropped)).view(torch.float32)",
        new="return scales_OG",
        oracles=(EXACT + "[int4]",),
    ),
    Mutant(
        id="M552",
        what="a negative zero, which no integer gives back",
        file="models/grid.py",
        old="return (weight_OGS / scales_OG.to(weight_OI.dtype)[..., None]).round() + 0.0, scales_OG",
        new="return (weight_OGS / scales_OG.to(weight_OI.dtype)[..., None]).round(), scales_OG",
        oracles=(EXACT + "[int8]",),
    ),
    Mutant(
        id="M553",
        what="rounded at the end alone: training never sees what it is rounded to",
        file="training/plan.py",
        old="quantize=learner.section.quantize,",
        new="quantize=None,",
        oracles=(RUN + "test_what_is_saved_answers_bit_for_bit_as_what_was_trained",),
    ),
    Mutant(
        id="M554",
        what="a control that is saved and measured as it is, beside a student that is rounded",
        file="training/prepare.py",
        old="return next((one.section.quantize for own, one in learners if name in (own, control(own))), None)",
        new="return next((one.section.quantize for own, one in learners if name == own), None)",
        oracles=(RUN + "test_what_a_student_was_before_is_measured_rounded_too",),
    ),
    Mutant(
        id="M555",
        what="the weights themselves rounded, so that small steps are lost",
        file="training/precision.py",
        old="working.copy_(self._rounding.of(name, master) if self._rounding is not None else master)",
        new="working.copy_(master.copy_(self._rounding.of(name, master)) if self._rounding is not None else master)",
        oracles=(STRAIGHT + "[dtype0-int4]",),
    ),
    Mutant(
        id="M556",
        what="GPT-2's matrices rounded along their outputs",
        file="models/grid.py",
        old="return on_grid(weight.T, self.kind).T if self.inputs_first[name] else on_grid(weight, self.kind)",
        new="return on_grid(weight, self.kind)",
        oracles=(GRID + "test_attention_and_mlp_are_rounded_and_nothing_else_outputs_by_their_own_rows[gpt2]",),
    ),
    Mutant(
        id="M557",
        what="what a student was before shown with weights that it never computed with",
        file="verbs/evaluate.py",
        old="models[roles.before(name)] = on_path(prepared.as_saved(prepared.start(name), name), prepared)",
        new="models[roles.before(name)] = on_path(prepared.start(name), prepared)",
        oracles=(RUN + "test_what_a_student_was_before_is_measured_rounded_too",),
    ),
)
