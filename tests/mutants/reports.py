"""Bugs of the report: what a text may do to the page, what the explorer says, what may share a table."""

from tests.mutants.mutant import Mutant

BUILD = "tests/reports/test_build.py::"
EXPLORER = "tests/evaluation/test_explorer.py::"
REPORT = "tests/verbs/test_report.py::"

REPORTS = (
    Mutant(
        id="M440",
        what="the explorer's data can end their script element (M44 of the register)",
        file="reports/explore.py",
        old='return Markup(text.replace("<", "\\\\u003c").replace(">", "\\\\u003e").replace("&", "\\\\u0026"))',
        new="return Markup(text)",
        oracles=(BUILD + "test_a_text_of_the_explorer_cannot_end_its_data",),
    ),
    Mutant(
        id="M441",
        what="the page's policy allows every inline script",
        file="reports/build.py",
        old="f\"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; \"",
        new="f\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; \"",
        oracles=(BUILD + "test_the_page_loads_nothing_and_runs_only_the_script_whose_hash_its_policy_names",),
    ),
    Mutant(
        id="M442",
        what="the name of a slice is markup in a drawing's description",
        file="reports/svg.py",
        old='return svg.replace("<title></title>", f"<title>{escape(described)}</title>", 1)',
        new='return svg.replace("<title></title>", f"<title>{described}</title>", 1)',
        oracles=(BUILD + "test_no_name_of_a_slice_adds_anything_to_a_drawing",),
    ),
    Mutant(
        id="M443",
        what="the explorer shows what was expected one token further on",
        file="evaluation/explorer.py",
        old="at=position + 1,",
        new="at=position,",
        oracles=(EXPLORER + "test_every_token_has_the_kl_and_the_probabilities_of_a_plain_forward",),
    ),
    Mutant(
        id="M444",
        what="the explorer's KL is the other way round",
        file="evaluation/explorer.py",
        old="return (probability_PV * (teacher_logp_PV - logp_PV)).masked_fill(probability_PV == 0, 0.0).sum(-1)",
        new="return (logp_PV.exp() * (logp_PV - teacher_logp_PV)).sum(-1)",
        oracles=(EXPLORER + "test_every_token_has_the_kl_and_the_probabilities_of_a_plain_forward",),
    ),
    Mutant(
        id="M445",
        what="students of different teachers share a table",
        file="reports/compare.py",
        old="reasons += _teachers(parts)",
        new="reasons += []",
        oracles=(REPORT + "test_every_reason_against_a_comparison_is_given_at_once",),
    ),
    Mutant(
        id="M446",
        what="runs measured on different texts share a table",
        file="reports/compare.py",
        old="if len({tuple(r) for r in rows.values()}) > 1:",
        new="if False:",
        oracles=(REPORT + "test_runs_measured_on_other_texts_are_refused_though_their_data_have_one_name",),
    ),
    Mutant(
        id="M447",
        what="a report replaces any file that it is pointed at",
        file="verbs/report.py",
        old="if _MARK not in file.read(_MARK_BYTES):",
        new="if False:",
        oracles=(REPORT + "test_what_cannot_be_written_is_said_before_anything_is",),
    ),
    Mutant(
        id="M473",
        what="long names of a table cut",
        file="reports/listed.py",
        old='shown.add_column(name, justify="right" if i else "left", overflow="fold")',
        new='shown.add_column(name, justify="right" if i else "left", overflow="ellipsis", no_wrap=True)',
        oracles=("tests/reports/test_table.py::test_a_long_name_is_folded_and_never_cut",),
    ),
    Mutant(
        id="M474",
        what="two models of a page in colours that look alike",
        file="reports/build.py",
        old='free = itertools.cycle(n for n in "123456" if n not in taken)',
        new='free = itertools.cycle("123456")',
        oracles=("tests/reports/test_build.py::test_no_two_models_of_a_page_have_colours_that_look_alike",),
    ),
    Mutant(
        id="M475",
        what="every run of a comparison pays for the rows of all",
        file="verbs/contest_scores.py",
        old='return spent.get("label", 0.0) * min(1.0, arm.work.stored / max(1.0, spent.get("label n", 0.0)))',
        new='return spent.get("label", 0.0)',
        oracles=(
            "tests/verbs/test_compare.py::test_the_seconds_of_labelling_are_shared_by_the_rows_that_each_run_reads",
        ),
    ),
)
