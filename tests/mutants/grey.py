"""Bugs of the grey box: an endpoint's log-probabilities at other tokens than it wrote, or not as it gave them."""

from tests.mutants.mutant import Mutant

SOFT = "tests/generation/test_soft.py::"
GREY = "tests/verbs/test_grey.py::"
ACCURACY = "tests/verbs/test_task_accuracy.py::"
REFUSED = SOFT + "test_what_is_not_the_same_tokens_is_refused_with_the_reason"

GREY_BOX = (
    Mutant(
        id="M370",
        what="tokens matched without a look at their bytes",
        file="generation/soft.py",
        old="if data != found.data or not same_id:",
        new="if not same_id:",
        oracles=(REFUSED + "[another byte]",),
    ),
    Mutant(
        id="M371",
        what="an endpoint's ids ignored where it gives them",
        file="generation/soft.py",
        old="if data != found.data or not same_id:",
        new="if data != found.data:",
        oracles=(REFUSED + "[the same bytes under another id]",),
    ),
    Mutant(
        id="M372",
        what="what lacks to 1 thrown away instead of kept as the tail",
        file="generation/soft.py",
        old="return kept, math.log(lacking) if lacking > 0 else -math.inf",
        new="return kept, -math.inf",
        oracles=(
            SOFT + "test_the_numbers_of_the_endpoint_stand_at_the_row_s_own_tokens_and_the_rest_is_the_tail[False]",
        ),
    ),
    Mutant(
        id="M373",
        what="probabilities that sum to more than 1 taken",
        file="generation/soft.py",
        old="if total > 1 + MOST_SUM:",
        new="if False:",
        oracles=(REFUSED + "[probabilities above 1]",),
    ),
    Mutant(
        id="M374",
        what="an endpoint with another tokenizer leaves an empty cache",
        file="generation/soft_cache.py",
        old="if found.n_refused <= found.n_rows and found.n_rows:",
        new="if True:",
        oracles=(GREY + "test_another_tokenizer_is_refused_and_the_answers_stay",),
    ),
    Mutant(
        id="M375",
        what="numbers of another temperature taken for those of temperature 1",
        file="generation/soft_cache.py",
        old="temperature=api.logprobs_temperature,",
        new="temperature=1.0,",
        oracles=(GREY + "test_the_temperature_of_the_numbers_is_kept_and_must_be_that_of_the_loss",),
    ),
    Mutant(
        id="M376",
        what="answers without the numbers that were asked for are bought to the end",
        file="generation/work.py",
        old="if wanted and (what := lacking(outcome.body, k=wanted, given=given, text=request.prompt.text)):",
        new="if False:",
        oracles=(GREY + "test_an_endpoint_without_the_numbers_that_were_asked_for_stops_the_run_at_once[0]",),
    ),
    Mutant(
        id="M378",
        what="prompts that the student was trained on counted as held out",
        file="verbs/tasks.py",
        old="if example.document not in trained and (share is None or splits.is_held_out(example.document, share))",
        new="if True",
        oracles=(ACCURACY + "test_teacher_and_student_are_judged_on_the_same_held_out_prompts_wrong_answers_counted",),
    ),
    Mutant(
        id="M379",
        what="the teacher's wrong answers, which the set does not hold, not counted against it",
        file="generation/verdicts.py",
        old="right = [not why and text for why, text in zip(found, is_text, strict=True)]",
        new="right = [True for _ in group]",
        oracles=(ACCURACY + "test_valid_json_is_counted_where_a_schema_is_asked_for",),
    ),
    Mutant(
        id="M380",
        what="positions of a prompt counted from its padding",
        file="evaluation/written.py",
        old="mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])",
        new="mask_BT = torch.tensor([[1] * width for ids in prompts])",
        oracles=(ACCURACY + "test_a_batch_writes_what_each_prompt_alone_would_write",),
    ),
    Mutant(
        id="M377",
        what="Parquet of an earlier set beside the rows of this one",
        file="verbs/generate.py",
        old="io.remove_file(task.folder / PARQUET)",
        new="pass",
        oracles=("tests/generation/test_parquet.py::test_a_set_without_it_has_no_old_one_beside_it",),
    ),
)
