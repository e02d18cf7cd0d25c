"""Bugs of the cache around its codecs: whose targets a row gets, and what may be read as whose."""

from tests.mutants.mutant import Mutant

READER = "tests/cache/test_reader.py::"
WRITER = "tests/cache/test_writer.py::"

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
)
