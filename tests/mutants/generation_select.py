"""Bugs of what is asked and of what is kept: templates, functions, best of n, duplicates, contamination, languages."""

from tests.mutants.mutant import Mutant

TEMPLATES = "tests/generation/test_templates.py::"
BEST = "tests/generation/test_best.py::"
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
)
