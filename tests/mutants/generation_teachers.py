"""Bugs of teachers that write text: a training that buys, a model on this machine, several teachers."""

from tests.mutants.mutant import Mutant

LOCAL = "tests/generation/test_local.py::"
DECODE = "tests/generation/test_decode.py::"
TEACHERS = "tests/generation/test_teachers.py::"
BATCH = "tests/generation/test_batch.py::"
BRING = "tests/verbs/test_bring.py::"

GENERATION_TEACHERS = (
    Mutant(
        id="M350",
        what="a training that buys without a cap",
        file="verbs/bring.py",
        old="if any(writer.api for writer in task.writers) and not recipe.generate.has_cap:",
        new="if False:",
        oracles=(BRING + "test_without_a_cap_nothing_is_bought_and_the_error_names_the_command",),
    ),
    Mutant(
        id="M351",
        what="a training that buys although it was told not to ask",
        file="verbs/bring.py",
        old="if n_there == n_asked or not ask:",
        new="if n_there == n_asked:",
        oracles=(BRING + "test_the_library_trains_from_a_dict_and_asks_nothing_when_told",),
    ),
    Mutant(
        id="M352",
        what="answers bought for a folder that cannot be trained in",
        file="verbs/train.py",
        old="RunDirectory(folder).refuse_strangers()",
        new="pass",
        oracles=(BRING + "test_what_would_stop_the_training_is_said_before_anything_is_bought",),
    ),
    Mutant(
        id="M353",
        what="padding that is seen",
        file="generation/decode.py",
        old="mask_BT[b, longest - len(ids) :] = 1",
        new="mask_BT[b] = 1",
        oracles=(DECODE + "test_a_row_says_the_same_alone_and_beside_others[llama-1.3]",),
    ),
    Mutant(
        id="M354",
        what="positions that count the padding",
        file="generation/decode.py",
        old="positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)",
        new="positions_BT = (torch.ones_like(mask_BT).cumsum(-1) - 1).clamp(min=0)",
        oracles=(DECODE + "test_a_row_says_the_same_alone_and_beside_others[gpt2-1.3]",),
    ),
    Mutant(
        id="M355",
        what="one generator for all rows",
        file="generation/local.py",
        old='draw=randomness.generator(request.sampling.seed or 0, "generate", request.key),',
        new='draw=globals().setdefault("_draw", randomness.generator(0, "generate")),',
        oracles=(LOCAL + "test_an_answer_depends_on_its_prompt_sample_and_seed_not_on_its_neighbours",),
    ),
    Mutant(
        id="M356",
        what="one luck for all rows of a round",
        file="generation/decode.py",
        old="draw.standard_exponential(out=time_V)",
        new="draws[0].standard_exponential(out=time_V)",
        oracles=(DECODE + "test_a_row_says_the_same_alone_and_beside_others[llama-1.3]",),
    ),
    Mutant(
        id="M357",
        what="a control token in a prompt's text taken for the template's",
        file="data/tokenize.py",
        old="pieces = self._chat(chat) if chat else [*begin, *_split_long(_Piece(text=text, begins=True))]",
        new='pieces = [*self._control_atoms(replace(chat[0], text="".join(s.text for s in chat)))] or [*begin]',
        oracles=(LOCAL + "test_what_it_sees_is_what_the_student_is_trained_on",),
    ),
    Mutant(
        id="M358",
        what="another model's answers taken for this one's",
        file="generation/writers.py",
        old="what = repr((local.weights, local.tokenizer, local.template, local.dtype))",
        new="what = repr((local.tokenizer, local.template, local.dtype))",
        oracles=(LOCAL + "test_another_teacher_or_number_format_is_asked_anew_and_a_moved_folder_is_not",),
    ),
    Mutant(
        id="M359",
        what="a signal that is not heeded",
        file="generation/local.py",
        old="stop.heed(len(ledger.final))",
        new="pass",
        oracles=(LOCAL + "test_a_signal_stops_at_the_next_token_and_the_same_call_goes_on",),
    ),
    Mutant(
        id="M360",
        what="a source's own teacher ignored",
        file="generation/task.py",
        old='if prompt.teacher not in ("", writer.name):',
        new="if False:",
        oracles=(TEACHERS + "test_a_source_names_its_teacher",),
    ),
    Mutant(
        id="M361",
        what="every teacher at the same price",
        file="generation/writers.py",
        old='own = wanted if section.price is None else wanted.model_copy(update={"price": section.price})',
        new="own = wanted",
        oracles=(TEACHERS + "test_the_cap_holds_over_all_of_them_and_each_has_its_price",),
    ),
    Mutant(
        id="M362",
        what="a job that is not looked for by its mark",
        file="generation/batch_work.py",
        old="job = self._client.look(batch) if batch else self._look_for(mark)",
        new="job = self._client.look(batch) if batch else None",
        oracles=(BATCH + "test_killed_at_every_operation_no_job_is_paid_twice",),
    ),
    Mutant(
        id="M363",
        what="a batch job's reservations charged when the process dies",
        file="generation/ledger.py",
        old="return answered.union(*(job.ids for job in self.jobs.values()))",
        new="return answered",
        oracles=(BATCH + "test_killed_at_every_operation_no_job_is_paid_twice",),
    ),
    Mutant(
        id="M364",
        what="a job created again because the answer got lost",
        file="generation/batch.py",
        old="if once and not isinstance(error, _UNSENT):",
        new="if False:",
        oracles=(BATCH + "test_a_job_whose_creation_was_not_answered_is_found_by_its_mark[lost]",),
    ),
    Mutant(
        id="M365",
        what="a reply that is missing in a completed job is free",
        file="generation/batch_work.py",
        old='self._close(mark, why=f"batch {job.status}", is_paid=job.status not in _UNPAID)',
        new='self._close(mark, why=f"batch {job.status}", is_paid=False)',
        oracles=(BATCH + "test_a_reply_that_is_missing_in_a_completed_job_stays_spent",),
    ),
    Mutant(
        id="M366",
        what="a job handed in before its money and mark are on the disk",
        file="generation/batch_work.py",
        old="self._commit(records)  # the money and the mark are on the disk before anything goes up",
        new="self._client.upload([]); self._commit(records)",
        oracles=(BATCH + "test_money_and_mark_are_on_the_disk_before_anything_goes_up",),
    ),
)
