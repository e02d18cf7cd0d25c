"""Bugs of what is asked and of what is kept: templates, functions, best of n, duplicates, contamination, languages."""

from tests.mutants.mutant import Mutant

TEMPLATES = "tests/generation/test_templates.py::"
BEST = "tests/generation/test_best.py::"
NEAR = "tests/generation/test_near.py::"
CONTAMINATION = "tests/generation/test_decontaminate.py::"
LANGUAGE = "tests/generation/test_language.py::"
JUDGING = "tests/generation/test_judge.py::"
FUNCTION = "tests/generation/test_function.py::"

SELECTION = (
    Mutant(
        id="M330",
        what="what a row holds read as a template again",
        file="generation/templates.py",
        old='return "".join(values[column] if column else literal for literal, column in template.pieces)',
        new='a = "".join(values[c] if c else text for text, c in template.pieces); return a.format(**values)',
        oracles=(TEMPLATES + "test_columns_stand_in_the_prompt_and_the_system_prompt_and_the_reference_is_not_sent",),
    ),
    Mutant(
        id="M331",
        what="a template whose column no row has taken for a few bad rows",
        file="generation/prompts.py",
        old="lacking.require(number)",
        new="pass",
        oracles=(TEMPLATES + "test_an_unknown_column_is_one_line_before_anything_is_sent",),
    ),
    Mutant(
        id="M332",
        what="the card's hash without the templates",
        file="verbs/generate.py",
        old="templates = [source.template for source in wanted.prompts]",
        new="templates = [None for source in wanted.prompts]",
        oracles=(TEMPLATES + "test_the_hash_of_the_card_follows_the_template_and_equal_texts_are_not_asked_again",),
    ),
    Mutant(
        id="M333",
        what="a function that never ends waited for",
        file="generation/function_process.py",
        old="said = self._line(time.monotonic() + self._timeout_s)",
        new="said = self._line(time.monotonic() + 20)",
        oracles=(FUNCTION + "test_whatever_a_function_does_is_a_reason_and_the_next_answer_is_judged",),
    ),
    Mutant(
        id="M334",
        what="any truth taken for true",
        file="generation/_function_child.py",
        old='return {"type": type(value).__name__}',
        new='return {"value": bool(value)}',
        oracles=(FUNCTION + "test_whatever_a_function_does_is_a_reason_and_the_next_answer_is_judged",),
    ),
    Mutant(
        id="M335",
        what="what a function prints taken for its reply",
        file="generation/_function_child.py",
        old="os.dup2(2, 1)",
        new="pass",
        oracles=(FUNCTION + "test_whatever_a_function_does_is_a_reason_and_the_next_answer_is_judged",),
    ),
    Mutant(
        id="M336",
        what="the worst of the samples kept",
        file="generation/select/best.py",
        old="ranked = sorted((-sign * value, i) for i, value in enumerate(scores) if not isinstance(value, Verdict))",
        new="ranked = sorted((sign * value, i) for i, value in enumerate(scores) if not isinstance(value, Verdict))",
        oracles=(BEST + "test_the_best_of_the_samples_of_each_prompt_is_kept",),
    ),
    Mutant(
        id="M337",
        what="the best of all prompts together, not of each",
        file="generation/product.py",
        old="for _, group in itertools.groupby(answered, key=lambda one: one.request.prompt):",
        new="for _, group in itertools.groupby(answered, key=lambda one: one.request.prompt.source):",
        oracles=(BEST + "test_the_best_of_the_samples_of_each_prompt_is_kept",),
    ),
    Mutant(
        id="M338",
        what="near duplicates looked for among the answers to one prompt only",
        file="generation/select/deduplicate.py",
        old='sketch.update([" ".join(words[i : i + N_SEQUENCE]) for i in range(len(words) - N_SEQUENCE + 1)])',
        new='sketch.update([" ".join((*candidate.asked, *words[i : i + 3])) for i in range(len(words) - 2)])',
        oracles=(NEAR + "test_an_answer_that_resembles_one_to_any_prompt_is_dropped_and_says_which",),
    ),
    Mutant(
        id="M339",
        what="short answers taken for near duplicates",
        file="generation/select/deduplicate.py",
        old="if len(words) < LEAST_WORDS:",
        new="if len(words) < N_SEQUENCE:",
        oracles=(NEAR + "test_short_answers_may_be_right_for_many_prompts",),
    ),
    Mutant(
        id="M340",
        what="too few bands, so that near duplicates never meet",
        file="generation/select/deduplicate.py",
        old="if (1 - near**n_rows) ** n_bands <= _MOST_MISSED:",
        new="if True:",
        oracles=(NEAR + "test_what_is_dropped_is_what_really_resembles",),
    ),
    Mutant(
        id="M341",
        what="an overlap hidden by punctuation or Unicode form",
        file="generation/select/_words.py",
        old='return _WORD.findall(_APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold()))',
        new="return text.casefold().split()",
        oracles=(CONTAMINATION + "test_texts_overlap_by_their_words",),
    ),
    Mutant(
        id="M342",
        what="texts shorter than the n-gram never overlap",
        file="generation/select/decontaminate.py",
        old="if found is None and least <= length < n:",
        new="if False:",
        oracles=(CONTAMINATION + "test_texts_overlap_by_their_words",),
    ),
    Mutant(
        id="M343",
        what="prompts not held against the evaluation sets",
        file="generation/select/decontaminate.py",
        old='of_last = (candidate.asked, _said(sets, candidate.asked, where="prompt"))',
        new='of_last = (candidate.asked, "")',
        oracles=(CONTAMINATION + "test_a_prompt_of_an_evaluation_set_is_dropped_with_the_name_of_the_set",),
    ),
    Mutant(
        id="M344",
        what="answers too short to tell dropped",
        file="generation/select/language.py",
        old="if len(letters.encode()) < LEAST_BYTES:",
        new="if False:",
        oracles=(LANGUAGE + "test_answers_in_other_languages_are_dropped_and_undecided_ones_counted",),
    ),
    Mutant(
        id="M345",
        what="a judge's reply that was journalled before a crash settled at the teacher's price",
        file="verbs/generate.py",
        old="own = replace(budget, price=Price(prompt=price[0], answer=price[1]) if price is not None else None)",
        new="own = budget",
        oracles=(JUDGING + "test_killed_anywhere_the_judge_goes_on_and_every_cent_is_counted",),
    ),
    Mutant(
        id="M346",
        what="a judge's reply that cannot be read taken for a score of nothing",
        file="generation/judging.py",
        old='return score if score is not None else Verdict(why="the judge\'s reply has no score", about=reply.text)',
        new="return score or 0.0",
        oracles=(JUDGING + "test_replies_without_a_score_are_counted_and_stay_in_the_journal",),
    ),
    Mutant(
        id="M347",
        what="a judge paid where nothing is to be chosen",
        file="generation/judging.py",
        old="if len(left) > judge.keep:",
        new="if left:",
        oracles=(JUDGING + "test_only_what_there_is_to_choose_from_is_judged_and_nothing_twice",),
    ),
    Mutant(
        id="M348",
        what="the judge outside the cap",
        file="generation/judging.py",
        old="budget=replace(budget, price=own),",
        new="budget=Budget(price=own),",
        oracles=(JUDGING + "test_the_cap_counts_teacher_and_judge_together",),
    ),
    Mutant(
        id="M349",
        what="what a judge said counted as answers",
        file="verbs/status.py",
        old="done=len(ledger.final) - ledger.n_judged,",
        new="done=len(ledger.final),",
        oracles=(JUDGING + "test_the_judges_best_answer_is_kept_and_paid_at_its_own_price",),
    ),
)
