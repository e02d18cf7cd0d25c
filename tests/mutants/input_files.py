"""Bugs of reading what users give: compressed files, Parquet, rows, and which sources are looked at."""

from tests.mutants.mutant import Mutant

PLACES = "tests/data/test_places.py::"

INPUT = (
    Mutant(
        id="M580",
        what="a stream behind the first one of a file is left out when it cannot be read",
        file="data/members.py",
        old="self._member = self._new()",
        new="return 0",
        oracles=(PLACES + "test_a_damaged_later_member_is_an_error_and_never_fewer_documents",),
    ),
    Mutant(
        id="M581",
        what="any number of zeros is taken for padding",
        file="data/members.py",
        old="if n_padding % _PADDING_UNIT:",
        new="if False:",
        oracles=(PLACES + "test_xz_streams_may_be_padded_by_fours_of_zeros_and_by_nothing_else",),
    ),
)
