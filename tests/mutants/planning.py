"""The plan: operations, bytes and refusals."""

from tests.mutants.mutant import Mutant

PLAN = "tests/planning/test_plan.py::"
CONTEST = "tests/planning/test_contest.py::"
POOLING = "tests/evaluation/test_pooling.py::"
COMPARING = "tests/verbs/test_compare.py::"
PLANNING: tuple[Mutant, ...] = (
    Mutant(
        id="M455",
        what="the backward pass is counted as one product",
        file="planning/flops.py",
        old="return 3.0 * self.forward_flops(context=context) - 2.0 * staying",
        new="return 2.0 * self.forward_flops(context=context) - 2.0 * staying",
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
        id="M480",
        what="the error of a comparison without the spread of its seeds",
        file="evaluation/pooling.py",
        old="whole = math.hypot(rows.stderr, of_seeds)",
        new="whole = rows.stderr",
        oracles=(POOLING + "test_false_alarms_are_rare_whether_rows_or_seeds_vary_more[0.3]",),
    ),
    Mutant(
        id="M481",
        what="Welch's degrees of freedom where few seeds make most of the error",
        file="evaluation/pooling.py",
        old="return max(1, min(found, of_b) if b > a else found)",
        new="return max(1, found)",
        oracles=(POOLING + "test_false_alarms_are_rare_whether_rows_or_seeds_vary_more[0.05]",),
    ),
    Mutant(
        id="M482",
        what="hard labels measured on rows of their own",
        file="planning/techniques/_recipe.py",
        old='held_out = {**held_out, "sources": data["sources"]}',
        new="held_out = {**held_out}",
        oracles=(CONTEST + "test_hard_labels_are_measured_on_the_rows_that_the_recipe_holds_out",),
    ),
    Mutant(
        id="M483",
        what="the teacher's first work counted again for every seed",
        file="planning/contest.py",
        old="expected[arm.name] = whole if arm.technique not in known else pace.seconds(alone)",
        new="expected[arm.name] = whole",
        oracles=(CONTEST + "test_hours_give_the_longest_contest_that_fits_and_the_teachers_first_work_counts_once",),
    ),
    Mutant(
        id="M484",
        what="equal compute without the operations of the teacher",
        file="planning/contest.py",
        old="if _flops(technique, facts, middle * step, texts=texts).total <= budget:",
        new="if _flops(technique, facts, middle * step, texts=texts).students <= budget:",
        oracles=(CONTEST + "test_lengths_of_equal_compute_are_the_longest_that_the_budget_allows",),
    ),
    Mutant(
        id="M485",
        what="a share of held-out sources ignored: all of them are held out",
        file="data/split.py",
        old="if share is not None:",
        new="if False:",
        oracles=("tests/data/test_split.py::test_a_share_of_held_out_sources_is_what_training_on_them_would_hold_out",),
    ),
    Mutant(
        id="M486",
        what="a teacher that learned is what co-distillation is measured against",
        file="verbs/contest_scores.py",
        old='return all(teacher.get(name) is None for name in ("cache", "train")) and teacher.get("model") is not None',
        new='return not (teacher.get("cache") or teacher.get("train")) and teacher.get("model") is not None',
        oracles=(COMPARING + "test_what_is_measured_again_of_a_technique[co-True]",),
    ),
    Mutant(
        id="M487",
        what="documents that are held out given to the teacher to go on from",
        file="verbs/beginnings.py",
        old="if document in seen or document in own or (share is not None and splits.is_held_out(document, share)):",
        new="if document in seen:",
        oracles=(COMPARING + "test_no_document_that_is_held_out_is_a_beginning",),
    ),
)
