"""Bugs of the cache around its codecs: whose targets a row gets, and what may be read as whose."""

from tests.mutants.mutant import Mutant

READER = "tests/cache/test_reader.py::"
WRITER = "tests/cache/test_writer.py::"
LABEL = "tests/verbs/test_label.py::"

CACHE = (
    Mutant(
        id="M14-read",
        what="targets shifted by one against the tokens",
        file="cache/reader.py",
        after="positions = Positions(",
        old="next_ids_N=next_ids_N,",
        new="next_ids_N=np.roll(next_ids_N, 1),",
        oracles=(READER + "test_every_row_has_the_teachers_distribution_at_its_trained_positions[topk]",),
    ),
    Mutant(
        id="M53",
        what="rows taken by their place in the run, not by their content",
        file="cache/reader.py",
        old="places = [self._place(key, n, len(keys)) for n, key in enumerate(keys)]",
        new="places = [(0, n) for n, key in enumerate(keys)]",
        oracles=(READER + "test_the_batch_the_order_and_the_neighbours_of_a_row_do_not_matter[topk]",),
    ),
    Mutant(
        id="M54",
        what="salted hash in the seed of a draw",
        file="cache/rows.py",
        old='return np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64)',
        new="return np.array([hash(digest) & 0xFFFFFFFF for digest in digests], dtype=np.uint64)",
        oracles=("tests/cache/test_rows.py::test_a_seed_is_a_function_of_key_draw_and_teacher_on_every_machine",),
    ),
    Mutant(
        id="M55",
        what="a cache that was asked for otherwise is gone on with",
        file="cache/writer.py",
        old="if before is not None and (found := manifests.differences(before.asked, job.asked)):",
        new="if before is not None and (found := []):",
        oracles=(WRITER + "test_a_cache_does_not_grow_with_what_was_asked_for_otherwise[fixed]",),
    ),
    Mutant(
        id="M290",
        what="a cache of an older format is read with the coder of today",
        file="cache/manifest.py",
        old="if isinstance(version, int) and version != FORMAT_VERSION:",
        new="if isinstance(version, int) and version > FORMAT_VERSION:",
        oracles=(READER + "test_an_older_format_is_refused_with_what_to_do_and_left_alone",),
    ),
    Mutant(
        id="M291",
        what="an unfinished cache is gone on with on other data",
        file="cache/writer.py",
        old="if rows.sha256() != plan.rows_sha256:",
        new="if not rows.sha256():",
        oracles=(WRITER + "test_an_unfinished_cache_is_not_gone_on_with_on_other_data",),
    ),
    Mutant(
        id="M292",
        what="the start of a teacher whose label was stopped stays for the next one",
        file="verbs/label.py",
        old="save_start(live.model, tokenizer, folder / START, replace=_recorded(folder) is None)",
        new="save_start(live.model, tokenizer, folder / START, replace=False)",
        oracles=(LABEL + "test_a_label_that_was_stopped_before_its_plan_does_not_leave_its_teachers_start",),
    ),
    Mutant(
        id="M293",
        what="doctor passes over what the cache cannot serve",
        file="verbs/doctor.py",
        old="terms = [term for term in terms_of(learner.loss) if term.source == TEACHER]",
        new='terms = [term for term in terms_of(learner.loss) if term.source == "none"]',
        oracles=(LABEL + "test_doctor_looks_at_the_cache_too",),
    ),
    Mutant(
        id="M295",
        what="the error of an average is measured with every teacher at the same weight",
        file="cache/measured.py",
        old="parts, weights=[member.weight for member in members], temperature=cache.manifest.asked.temperature",
        new="parts, weights=[1 / len(members)] * len(members), temperature=cache.manifest.asked.temperature",
        oracles=(
            "tests/cache/test_merging.py::"
            + "test_its_error_is_measured_against_the_average_of_the_live_teachers[topk-True]",
        ),
    ),
    Mutant(
        id="M468",
        what="the rows of whole epochs taken for those that a run reads",
        file="data/loader.py",
        old="found.append(np.unique(plan.rows[: plan.begins[n_windows]]))",
        new="found.append(np.unique(plan.rows))",
        oracles=("tests/data/test_loader.py::test_the_rows_that_a_run_reads_are_those_of_its_batches",),
    ),
    Mutant(
        id="M469",
        what="a run starts although its rows are not in a cache that need hold no others",
        file="training/teachers.py",
        old="if isinstance(teacher, CachedTeacher) and _is_for_run(recipe):",
        new="if isinstance(teacher, EnsembleTeacher) and _is_for_run(recipe):",
        oracles=(
            "tests/verbs/test_label.py::test_a_cache_of_the_rows_that_a_run_reads_teaches_it_as_the_teacher_would",
        ),
    ),
    Mutant(
        id="M470",
        what="a short run of a comparison pays for a cache of the whole text",
        file="planning/contest.py",
        old="return technique.work(replace(facts, text=text, caches_run=True))",
        new="return technique.work(replace(facts, text=text))",
        oracles=(
            "tests/planning/test_contest.py::test_a_short_run_caches_the_rows_that_it_reads_at_the_price_of_asking_live",
        ),
    ),
)
