"""The plan: operations, bytes and refusals."""

from tests.mutants.mutant import Mutant

PLAN = "tests/planning/test_plan.py::"
PLANNING: tuple[Mutant, ...] = (
    Mutant(
        id="M455",
        what="the backward pass is counted as one product",
        file="planning/flops.py",
        old="return 3.0 * self.forward_flops(context=context)",
        new="return 2.0 * self.forward_flops(context=context)",
        oracles=("tests/planning/test_flops.py::test_the_formula_is_what_pytorch_counts[True-llama]",),
    ),
    Mutant(
        id="M456",
        what="a cache is asked again in every epoch",
        file="planning/techniques/cached.py",
        old="teacher_forward=text.unique + text.held_out,",
        new="teacher_forward=text.trained,",
        oracles=(PLAN + "test_every_technique_is_its_tokens_times_the_formula",),
    ),
)
