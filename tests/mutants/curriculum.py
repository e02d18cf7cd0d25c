"""Bugs of an order by the teacher's loss, and of a teacher that lies elsewhere."""

from tests.mutants.mutant import Mutant

ORDER, LOSSES = "tests/data/test_curriculum.py::", "tests/training/test_curriculum.py::"
POOL = ORDER + "test_no_row_comes_before_it_is_in_the_pool_nor_twice_in_an_epoch_and_the_last_epoch_has_all"
ELSEWHERE = "tests/models/test_placement.py::"
MOVED = ELSEWHERE + "test_a_teacher_on_another_device_sends_hidden_states_alone_and_its_head_once[meta-cpu]"
KEPT = LOSSES + "test_what_was_measured_before_a_kill_stays_and_nothing_is_asked_twice"

CURRICULUM = (
    Mutant(
        id="M558",
        what="the pool of a stage is that of its end",
        file="data/curriculum.py",
        old="in_pool_R, room = curriculum.ranks_R < curriculum.shown(first, n_steps), n_steps * rows_per_step",
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

PLACEMENT = (
    Mutant(
        id="M564",
        what="a teacher's answers stay on its device",
        file="teachers/live.py",
        old="return answers.to(self._answers_on) if self._answers_on is not None else answers",
        new="return answers",
        oracles=(MOVED,),
    ),
    Mutant(
        id="M565",
        what="the teacher's head is moved at every step",
        file="teachers/live.py",
        old="self._moved_head = moved",
        new="self._moved_head = None",
        oracles=(MOVED,),
    ),
    Mutant(
        id="M566",
        what="the CPU reads what a GPU has not written yet",
        file="types.py",
        old='return tensor.to(device, non_blocking=torch.device(device).type != "cpu")',
        new="return tensor.to(device, non_blocking=True)",
        oracles=(MOVED,),
    ),
    Mutant(
        id="M567",
        what="a head that is the embedding is there twice in a teacher on the disk",
        file="models/placement.py",
        old='_keep(embedding, {"weight": output.weight})',
        new="pass",
        oracles=(ELSEWHERE + "test_a_model_on_the_disk_is_the_same_model[True]",),
    ),
    Mutant(
        id="M568",
        what="a teacher with a device map is known in a cache by what it computes in, not as it was saved",
        file="training/teachers.py",
        old="return weights_fingerprint(own)",
        new="return weights_fingerprint(model)",
        oracles=(ELSEWHERE + "test_a_teacher_on_the_disk_trains_and_labels_bitwise_as_one_in_memory",),
    ),
    Mutant(
        id="M569",
        what="label runs where the student would train, not where the teacher is to run",
        file="verbs/label.py",
        old="device=_device(checked),",
        new="device=checked.training.device,",
        oracles=(ELSEWHERE + "test_label_runs_where_the_teacher_is_to_run",),
    ),
)
