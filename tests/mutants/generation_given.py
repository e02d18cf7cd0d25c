"""Bugs of batch jobs that go wrong, of resumed answers, of keys on the disk and of given text."""

from tests.mutants.mutant import Mutant

REFUSALS = "tests/generation/test_batch_refusals.py::"
GIVEN = "tests/verbs/test_given_text.py::"

GIVEN_AND_LATER = (
    Mutant(
        id="M395",
        what="a refusal inside a batch job handed in again and again",
        file="generation/batch_lines.py",
        old="return not self.is_reply and (replies.is_for_good(self.status) or self._says_quota)",
        new="return False",
        oracles=(REFUSALS + "test_a_no_to_one_prompt_among_answers_is_final_at_once[400]",),
    ),
    Mutant(
        id="M396",
        what="a refusal of everything final for every prompt",
        file="generation/batch_work.py",
        old="about_all = [line for line in refused if line.code is not None or not self._n_good]",
        new="about_all = [line for line in refused if line.code is not None]",
        oracles=(
            REFUSALS
            + "test_a_no_to_everything_stops_the_run_unpaid_and_a_rerun_hands_it_in_again[unsupported_parameter]",
        ),
    ),
    Mutant(
        id="M397",
        what="a whole batch job paid before anybody looks whether log-probabilities come",
        file="generation/batch_work.py",
        old="self._gives_numbers = self._k is None or self._gave_numbers(requests())",
        new="self._gives_numbers = True",
        oracles=(REFUSALS + "test_one_request_is_handed_in_first_to_see_whether_log_probabilities_come",),
    ),
    Mutant(
        id="M398",
        what="a deleted file of a batch job passed over, its requests bought again without a word",
        file="generation/batch_work.py",
        old="self._files_gone += 1",
        new="pass",
        oracles=(
            REFUSALS
            + "test_a_file_that_the_provider_has_deleted_stays_spent_and_the_next_run_goes_on[404-output_file_id-5]",
        ),
    ),
    Mutant(
        id="M399",
        what="answers of older settings counted as done",
        file="generation/ledger.py",
        old='self.outcomes = Counter(cast("dict[str, int]", fields.get("outcomes", {})))',
        new="pass",
        oracles=(
            "tests/generation/test_generate.py::"
            "test_status_counts_the_answers_that_the_last_call_wants_and_tells_of_older_ones",
        ),
    ),
    Mutant(
        id="M400",
        what="answers begun on one device finished on another one unnoticed",
        file="generation/local.py",
        old='if recorded is None or found["device"] == recorded["device"]:',
        new="if True:",
        oracles=(
            "tests/generation/test_local.py::"
            "test_answers_that_were_begun_on_a_device_that_is_not_here_are_not_finished_on_another_one",
        ),
    ),
    Mutant(
        id="M401",
        what="the card of an earlier set beside rows without their soft labels",
        file="verbs/generate.py",
        old="io.remove_file(task.folder / CARD)  # with it the set is there: it goes first, and comes last",
        new="pass",
        oracles=("tests/verbs/test_grey.py::test_a_card_never_stands_without_the_soft_labels_that_belong_to_it",),
    ),
    Mutant(
        id="M402",
        what="a file of verdicts that lacks prompts taken",
        file="generation/verdicts.py",
        old='if record.kind == "end" and record.fields == {"prompts": number - 2}:',
        new='if record.kind == "end":',
        oracles=("tests/verbs/test_task_accuracy.py::test_a_damaged_or_shortened_file_of_verdicts_is_refused",),
    ),
    Mutant(
        id="M403",
        what="a request that is asked twice takes the place of its first reply",
        file="generation/key_table.py",
        old='new = self._do("INSERT OR IGNORE INTO numbers VALUES (?, ?, ?, ?)", (_stored(key), a, b, c)).rowcount',
        new='new = self._do("INSERT OR REPLACE INTO numbers VALUES (?, ?, ?, ?)", (_stored(key), a, b, c)).rowcount',
        oracles=("tests/generation/test_key_table.py::test_it_says_what_a_dict_says",),
    ),
    Mutant(
        id="M404",
        what="a token that the endpoint alone puts before a given text taken for its first one",
        file="generation/soft.py",
        old="text = given[1:] if self._begins(given, n_text=n_text) else given",
        new="text = given",
        oracles=(GIVEN + "test_a_begin_that_only_the_endpoint_puts_before_a_text_is_not_a_token_of_it",),
    ),
    Mutant(
        id="M405",
        what="numbers of another token than the row's taken, where the server names ids",
        file="generation/soft.py",
        old="found = same or next((c for c in top if c.token_id == token_id), None)",
        new="found = same or top[0]",
        oracles=(
            GIVEN + "test_the_cache_holds_the_model_s_own_distribution_at_every_token_of_the_text[prompt_logprobs]",
        ),
    ),
    Mutant(
        id="M406",
        what="a server that spells parts of a character alike taken for one that lists too few tokens",
        file="generation/logprobs.py",
        old="told = [len(one.top) for one in scored if not any(choice.is_lost for choice in one.top)]",
        new="told = [len(one.top) for one in scored]",
        oracles=(GIVEN + "test_tokens_that_are_spelt_alike_are_in_the_tail_and_nothing_that_was_paid_is_lost",),
    ),
    Mutant(
        id="M407",
        what="a token whose bytes an endpoint does not say taken for the row's, whatever that is",
        file="generation/soft.py",
        old='if found.is_lost and data is not None and data.decode("utf-8", "replace") == found.text:',
        new="if found.is_lost and data is not None:",
        oracles=(
            "tests/generation/test_soft.py::"
            "test_what_is_not_the_same_tokens_is_refused_with_the_reason[bytes that are lost]",
        ),
    ),
    Mutant(
        id="M408",
        what="a first prompt that is refused holding up all others of a batch with log-probabilities",
        file="generation/batch_work.py",
        old='if code != "API_REQUEST" or self._gives_numbers or self._n_trials >= _TRIALS:',
        new="if True:",
        oracles=(REFUSALS + "test_first_prompts_that_are_refused_do_not_hold_up_the_others[400-4]",),
    ),
    Mutant(
        id="M409",
        what="refusals of a file that came down twice counted twice",
        file="generation/batch_work.py",
        old="self._refused |= {line.key: line for line in known.values() if line.is_refusal}",
        new="self._refused |= {f'{line.key} {len(self._refused)}': line for line in known.values() if line.is_refusal}",
        oracles=(REFUSALS + "test_refusals_of_a_file_that_came_down_twice_count_once",),
    ),
)
