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
    Mutant(
        id="M457",
        what="of a cache's disk the held-out rows are forgotten",
        file="planning/estimate.py",
        old="return rows * work.stored / form.draws + held_out * held_out_positions + beside",
        new="return rows * work.stored / form.draws + beside",
        oracles=(PLAN + "test_the_disk_of_a_cache_is_within_5_percent_of_what_label_then_writes[topk]",),
    ),
)
