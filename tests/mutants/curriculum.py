"""Bugs of an order by the teacher's loss."""

from tests.mutants.mutant import Mutant

ORDER, LOSSES = "tests/data/test_curriculum.py::", "tests/training/test_curriculum.py::"
POOL = ORDER + "test_no_row_comes_before_it_is_in_the_pool_nor_twice_in_an_epoch_and_the_last_epoch_has_all"
KEPT = LOSSES + "test_what_was_measured_before_a_kill_stays_and_nothing_is_asked_twice"

CURRICULUM = (
    Mutant(
        id="M558",
        what="the pool of a stage is that of its end",
        file="data/curriculum.py",
        old="in_pool_R, room = curriculum.ranks_R < curriculum.pool(first), n_steps * rows_per_step",
        new="in_pool_R, room = curriculum.ranks_R < curriculum.pool(first + n_steps), n_steps * rows_per_step",
        oracles=(POOL,),
    ),
    Mutant(
        id="M559",
        what="a row that was shown stays in the epoch",
        file="data/curriculum.py",
        old="left_R -= np.bincount(np.concatenate(shown), minlength=len(rows_R))",
        new="left_R -= np.bincount(np.concatenate(shown[:-1] or shown), minlength=len(rows_R))",
        oracles=(POOL,),
    ),
    Mutant(
        id="M560",
        what="the epoch that a curriculum ends in is dropped",
        file="data/curriculum.py",
        old="rest = np.repeat(np.arange(len(rows_R)), left_R)",
        new="rest = np.arange(0)",
        oracles=(POOL,),
    ),
    Mutant(
        id="M561",
        what="hard rows first",
        file="training/curriculum.py",
        old="ranks[np.lexsort((places, losses_R[places]))] = np.arange(len(places))",
        new="ranks[np.lexsort((places, -losses_R[places]))] = np.arange(len(places))",
        oracles=(
            LOSSES + "test_the_first_rows_are_those_that_the_teacher_asked_alone_or_read_from_its_cache_finds_easiest",
        ),
    ),
    Mutant(
        id="M562",
        what="kept losses are known by their rows alone, whoever the teacher is",
        file="training/curriculum.py",
        old='key = key_of({"format": _FORMAT, "rows": rows.sha256(), "part": PART_POSITIONS, **how})',
        new='key = key_of({"format": _FORMAT, "rows": rows.sha256(), "part": PART_POSITIONS})',
        oracles=(KEPT,),
    ),
    Mutant(
        id="M563",
        what="the ordinary epochs after a curriculum begin where the curriculum's windows do",
        file="data/loader.py",
        old="firsts.append(len(self._lead.plan) if self._lead is not None else 0)",
        new="firsts.append(0)",
        oracles=(ORDER + "test_afterwards_the_epochs_are_the_ordinary_ones_and_a_run_is_as_long_as_without",),
    ),
)
