"""Bugs of the numbers of an evaluation: what a position is scored for, what is sure, and of which part of the text."""

from tests.mutants.mutant import Mutant

POSITIONS = "tests/evaluation/test_positions.py::"
INTERVALS = "tests/evaluation/test_intervals.py::"
SLICES = "tests/evaluation/test_slices.py::"
TRANSFER = "tests/evaluation/test_transfer.py::"

NUMBERS = (
    Mutant(
        id="M499",
        what="tasks are asked for hours of a run that cannot be measured",
        file="verbs/evaluate.py",
        old="if stored is None or force:",
        new="if False:",
        oracles=("tests/verbs/test_train.py::test_a_run_without_held_out_rows_is_refused_before_any_task_is_asked",),
    ),
    Mutant(
        id="M410",
        what="both divergences exchanged in the compiled loop",
        file="evaluation/_positions_cpu.py",
        old="out[18] = forward / p_sum + more",
        new="out[18] = backward / q_sum - more",
        oracles=(POSITIONS + "test_both_orders_of_a_pair_swap_the_divergences_and_nothing_else[compiled]",),
    ),
    Mutant(
        id="M411",
        what="acceptance from the whole distance, not half of it",
        file="evaluation/positions.py",
        old="return 1 - 0.5 * (pair.taught.p_CV - pair.model.p_CV).abs().double().sum(-1)",
        new="return 1 - (pair.taught.p_CV - pair.model.p_CV).abs().double().sum(-1)",
        oracles=(POSITIONS + "test_every_number_of_a_position_is_that_of_its_definition[plain-dtype1]",),
    ),
    Mutant(
        id="M412",
        what="the error of a ratio linearised: too small for long sequences",
        file="evaluation/stats.py",
        old="rest_n = whole - b_n",
        new="rest_n = whole + 0 * b_n",
        oracles=(INTERVALS + "test_a_ratio_is_its_own_jackknife",),
    ),
    Mutant(
        id="M413",
        what="many comparisons judged as if each were the only one",
        file="evaluation/stats.py",
        old="largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))",
        new="largest = max(largest, p_values[i])",
        oracles=(INTERVALS + "test_holm_steps_down_as_its_paper_does",),
    ),
    Mutant(
        id="M414",
        what="the comparisons of a set left uncorrected",
        file="evaluation/transfer.py",
        old="together = stats.corrected([c.difference for c in made])",
        new="together = [c.difference for c in made]",
        oracles=(TRANSFER + "test_every_comparison_of_a_set_is_corrected_for_all_of_them",),
    ),
    Mutant(
        id="M415",
        what="a token counted at the position that predicts it",
        file="evaluation/cells.py",
        old="return np.asarray(index_N % view.ids_BT.shape[1] + 1, dtype=np.int64)",
        new="return np.asarray(index_N % view.ids_BT.shape[1], dtype=np.int64)",
        oracles=(SLICES + "test_documents_of_a_packed_row_count_their_own_positions",),
    ),
    Mutant(
        id="M416",
        what="of equal logits the same token taken twice",
        file="evaluation/_positions_cpu.py",
        old="if widen(row[j]) == value and j > last[best]:",
        new="if widen(row[j]) == value:",
        oracles=(POSITIONS + "test_equal_logits_are_ordered_by_their_id_on_every_way[compiled-dtype1]",),
    ),
    Mutant(
        id="M417",
        what="bits of control tokens divided by the bytes of the text",
        file="evaluation/sums.py",
        old='plain |= {N_BYTES: n_bytes_M, BYTE_NLL: np.where(n_bytes_M > 0, values["nll_nats"], 0.0)}',
        new='plain |= {N_BYTES: n_bytes_M, BYTE_NLL: values["nll_nats"]}',
        oracles=(SLICES + "test_bits_per_byte_counts_the_tokens_that_stand_for_text",),
    ),
    Mutant(
        id="M418",
        what="of records of an older version only said that they are newer",
        file="evaluation/records.py",
        old="if isinstance(found, int) and found < FORMAT:",
        new="if found is None:",
        oracles=(TRANSFER + "test_records_of_another_format_are_refused_with_what_to_type",),
    ),
    Mutant(
        id="M419",
        what="a temperature at the end of its range given an error of 0",
        file="evaluation/metrics/mending_temperature.py",
        old="unknown_n = np.full_like(found.influence_n, math.inf)",
        new="unknown_n = found.influence_n",
        oracles=(
            "tests/evaluation/test_heated.py::test_at_an_end_of_the_range_the_error_is_unknown_and_nothing_is_decided",
        ),
    ),
    Mutant(
        id="M420",
        what="the worst token of a row by its loss where a teacher is there",
        file="evaluation/sums.py",
        old='badness_M, place_M = values["kl_nats" if "kl_nats" in values else "nll_nats"], found.position_N[finite_N]',
        new='badness_M, place_M = values["nll_nats"], found.position_N[finite_N]',
        oracles=(SLICES + "test_the_worst_token_is_the_one_with_the_largest_kl",),
    ),
    Mutant(
        id="M421",
        what="rows with an infinite logit left without a number",
        file="evaluation/positions.py",
        old="if not broken_C.any():",
        new="if broken_C is not None:",
        oracles=(
            POSITIONS
            + "test_a_token_that_both_rule_out_adds_nothing_and_one_that_only_the_model_rules_out_is_infinite",
        ),
    ),
    Mutant(
        id="M448",
        what="the interval of two sequences from a series that is for many",
        file="evaluation/stats.py",
        old="if v <= 100:",
        new="if 10 < v <= 100:",
        oracles=("tests/evaluation/test_stats.py::test_the_quantile_is_students[2-12.706204736]",),
    ),
)
