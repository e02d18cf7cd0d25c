"""Bugs of what is measured beside the transfer: cells, overlap, traffic, coverage, probes, written text."""

from tests.mutants.mutant import Mutant

CONTINGENCY = "tests/evaluation/test_contingency.py::"
TRAFFIC = "tests/evaluation/test_traffic.py::"
PROBES = "tests/evaluation/test_probes.py::"

FURTHER = (
    Mutant(
        id="M426",
        what="who alone is right is swapped",
        file="evaluation/contingency.py",
        old="only_first=share(float((a_N * (1 - b_N)).sum()), n),",
        new="only_first=share(float(((1 - a_N) * b_N).sum()), n),",
        oracles=(CONTINGENCY + "test_the_four_cells_are_counted_and_add_up",),
    ),
    Mutant(
        id="M427",
        what="chance is one of the prompts",
        file="evaluation/contingency.py",
        old="chance, p_value = float(weight_N @ match_NN.mean(1)) / n, _shuffled(match_NN, weight_N)",
        new="chance, p_value = 1 / n, _shuffled(match_NN, weight_N)",
        oracles=(CONTINGENCY + "test_chance_is_the_mean_over_all_shuffles_of_the_answers",),
    ),
    Mutant(
        id="M428",
        what="a copied chunk of a row is no overlap",
        file="evaluation/overlap.py",
        old="if len(starts) and copied.mean() >= LEAST_SHARE:",
        new="if len(starts) and copied.all():",
        oracles=("tests/evaluation/test_overlap.py::test_a_planted_copy_is_found_and_nothing_else[chunk]",),
    ),
    Mutant(
        id="M429",
        what="a sequence of words reaches from one text into the next",
        file="data/words.py",
        old="within: npt.NDArray[np.uint64] = hashes[begins + n <= ends_W[: len(hashes)]]",
        new="within: npt.NDArray[np.uint64] = hashes",
        oracles=("tests/data/test_words.py::test_no_sequence_reaches_over_the_end_of_a_text",),
    ),
    Mutant(
        id="M430",
        what="the same wrong answer of two that say nothing readable",
        file="evaluation/contingency.py",
        old="every = {said for row in (*first, *second) for said in row if said}",
        new="every = {said for row in (*first, *second) for said in row}",
        oracles=(CONTINGENCY + "test_chance_is_the_mean_over_all_shuffles_of_the_answers",),
    ),
    Mutant(
        id="M431",
        what="short traffic is compared with long held-out texts",
        file="evaluation/traffic.py",
        old="figure, others = _figure(sums, 0, n_words=m), of_pieces(m)",
        new="figure, others = _figure(sums, 0, n_words=m), of_pieces(longest)",
        oracles=(TRAFFIC + "test_of_text_like_the_training_data_at_most_one_in_twenty_is_called_foreign",),
    ),
    Mutant(
        id="M432",
        what="the better one is called the worse",
        file="evaluation/advantage.py",
        old="a, b = loss(student), loss(teacher)",
        new="a, b = loss(teacher), loss(student)",
        oracles=(
            "tests/evaluation/test_advantage.py::"
            "test_the_loss_counts_tokens_and_the_difference_is_the_students_less_the_teachers",
        ),
    ),
    Mutant(
        id="M433",
        what="the mask is read one token early",
        file="evaluation/likelihood.py",
        old="labels_BT[b, 1 : len(row.ids)] = np.where(row.loss_mask[1:], row.ids[1:].astype(np.int64), IGNORED)",
        new="labels_BT[b, 1 : len(row.ids)] = np.where(row.loss_mask[:-1], row.ids[1:].astype(np.int64), IGNORED)",
        oracles=(
            "tests/evaluation/test_likelihood.py::test_the_log_probability_of_rows_is_that_of_each_alone_in_float64",
        ),
    ),
    Mutant(
        id="M434",
        what="before and after on the same sequences are taken for independent",
        file="evaluation/coverage.py",
        old="twice_covariance = after.stderr**2 + first.stderr**2 - apart.stderr**2",
        new="twice_covariance = 0.0",
        oracles=("tests/evaluation/test_coverage.py::test_what_is_left_has_the_error_of_the_ratio_of_both_sums",),
    ),
    Mutant(
        id="M435",
        what="the first token of a text is not scored",
        file="evaluation/probes.py",
        old="n_before = len(encoder.prefix or begin)",
        new="n_before = len(encoder.prefix or begin) + 1",
        oracles=(PROBES + "test_a_text_is_scored_with_its_first_token_and_without_its_end",),
    ),
    Mutant(
        id="M436",
        what="the teacher's gaps on the student's",
        file="evaluation/probes.py",
        old="value = float(dx @ dy / (dx @ dx))",
        new="value = float(dx @ dy / (dy @ dy))",
        oracles=(PROBES + "test_a_copy_of_the_teacher_has_all_of_its_skew_and_another_model_none",),
    ),
    Mutant(
        id="M437",
        what="JSON that was cut counts as invalid",
        file="evaluation/writing.py",
        old="asked = [float(text.wants_json and text.ended) for text in texts]",
        new="asked = [float(text.wants_json) for text in texts]",
        oracles=(
            "tests/evaluation/test_writing.py::test_json_is_counted_where_it_is_asked_for_and_the_text_was_not_cut",
        ),
    ),
    Mutant(
        id="M438",
        what="a one-sided test in place of a two-sided one",
        file="evaluation/shares.py",
        old="return min(1.0, 2 * math.fsum(_binomial(k, n, p=0.5) for k in range(fewer + 1)))",
        new="return min(1.0, math.fsum(_binomial(k, n, p=0.5) for k in range(fewer + 1)))",
        oracles=(CONTINGENCY + "test_the_sign_test_is_the_exact_binomial_one",),
    ),
    Mutant(
        id="M439",
        what="the less stereotypical sentence of CrowS-Pairs is taken for the stereotype",
        file="evaluation/pairs.py",
        old='("sent_more", "sent_less"),',
        new='("sent_less", "sent_more"),',
        oracles=(PROBES + "test_each_published_shape_gives_its_pairs",),
    ),
    Mutant(
        id="M449",
        what="questions with two choices, where any two wrong answers are the same, count as erring alike",
        file="evaluation/contingency.py",
        old="pairs = [(a, b, k) for a, b, k in every if k != 2]",
        new="pairs = every",
        oracles=(CONTINGENCY + "test_with_two_choices_the_same_wrong_answer_is_no_finding_and_the_reason_is_given",),
    ),
    Mutant(
        id="M450",
        what="of questions with unequal numbers of choices chance is that of the first",
        file="evaluation/contingency.py",
        old="chances_N = np.array([1 / (k - 1) for _, _, k in pairs])",
        new="chances_N = np.array([1 / (pairs[0][2] - 1) for _ in pairs])",
        oracles=(
            CONTINGENCY + "test_of_prompts_with_unequal_choices_each_has_its_own_chance_and_the_p_value_is_exact",
        ),
    ),
    Mutant(
        id="M451",
        what="the metrics of a task's filters overwrite each other",
        file="verbs/harness.py",
        old="m if len(filtered) == 1 else f\"{m},{one.get('filter', '')}\": float(one[m])",
        new="m: float(one[m])",
        oracles=(
            "tests/evaluation/test_harness.py::"
            "test_each_filter_of_a_task_has_its_metrics_by_name_and_the_likeliest_choice_is_taken",
        ),
    ),
    Mutant(
        id="M452",
        what="the luck of a few held-out rows taken for foreign traffic",
        file="evaluation/traffic.py",
        old="n, least = len(judged), stats.ALPHA * (n_rows + 1)",
        new="n, least, n_rows = len(judged), stats.ALPHA * 1e6, 999_999",
        oracles=(TRAFFIC + "test_fewer_held_out_rows_leave_more_to_luck",),
    ),
    Mutant(
        id="M453",
        what="what every held-out row begins with, such as a system prompt, counts as theirs",
        file="evaluation/traffic.py",
        old="least, shared = max(LEAST_WORDS, SHARED * n_rows), [0] * len(texts)",
        new="least, shared = n_rows + 1, [0] * len(texts)",
        oracles=(TRAFFIC + "test_what_every_held_out_row_begins_or_ends_with_is_in_no_figure",),
    ),
    Mutant(
        id="M454",
        what="a teacher that answers no new text is missing in silence",
        file="verbs/further.py",
        old="if prepared.recipe.teacher is not None and roles.TEACHER not in present(models):",
        new="if prepared.recipe.teacher is not None and roles.TEACHER not in models:",
        oracles=(
            "tests/verbs/test_further.py::test_who_was_asked_for_and_could_not_be_measured_is_said_with_the_reason",
        ),
    ),
    Mutant(
        id="M460",
        what="two files of one name are one",
        file="evaluation/pairs.py",
        old="return {_told_apart(path, paths): list(_pairs(path)) for path in paths}",
        new="return {path.name: list(_pairs(path)) for path in paths}",
        oracles=(PROBES + "test_files_of_one_name_in_several_folders_are_all_kept",),
    ),
    Mutant(
        id="M461",
        what="words that also stand alone make a trigger",
        file="evaluation/triggers.py",
        old="and r.n_documents >= TOGETHER * max(rare[word] for word in run)",
        new="and r.n_documents >= LEAST",
        oracles=("tests/evaluation/test_triggers.py::test_words_that_also_stand_alone_are_no_trigger",),
    ),
    Mutant(
        id="M462",
        what="two sets of a few sequences compared as if there were many",
        file="evaluation/coverage.py",
        old="p_value = stats.p_value(math.log(ratio), stderr, n=min(here.left.n, there.left.n))",
        new="p_value = stats.p_value(math.log(ratio), stderr, n=10_000)",
        oracles=(
            "tests/evaluation/test_coverage.py::"
            "test_of_a_few_sequences_the_p_value_is_that_of_student_and_agrees_with_the_interval",
        ),
    ),
)
