"""The journal: what was acknowledged is there after any death, torn is told from damaged, and damage stops the run."""

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.instruments import faults
from tests.instruments.power_loss import Disk
from tests.instruments.quick_disk import QUICK_DISK
from tutelage import io
from tutelage.errors import ConfigError, IntegrityError, ResourceError
from tutelage.generation import journal as journals
from tutelage.generation.journal import NAME, Journal, Record


def groups(n: int, *, seed: int = 0) -> list[list[tuple[str, dict[str, object]]]]:
    draw = random.Random(seed)
    texts = ["short", 'with \n "lines" and ü\u2028', "group 00000000 1 1 00000000\n", "x" * 300]
    return [
        [("answered", {"key": f"{i}-{j}", "body": draw.choice(texts)}) for j in range(draw.randint(1, 4))]
        for i in range(n)
    ]


def write_groups(folder: Path, many: list[list[tuple[str, dict[str, object]]]], *, close: bool = True) -> None:
    journal = Journal(folder, lambda _: None)
    for group in many:
        journal.commit(group)
    if close:
        journal.close()
    else:
        os.close(journal._handle)


def contents(folder: Path) -> list[tuple[str, object]]:
    found: list[Record] = []
    journals.read(folder / NAME, found.append)
    return [(r.kind, r.fields) for r in found]


def flat(many: list[list[tuple[str, dict[str, object]]]]) -> list[tuple[str, object]]:
    return [record for group in many for record in group]


def test_what_was_committed_is_read_back_in_order_and_by_its_place(tmp_path):
    many = groups(9)
    journal = Journal(tmp_path, lambda _: None)
    placed = [record for group in many for record in journal.commit(group)]
    journal.close()
    assert contents(tmp_path) == flat(many)
    assert [journals.fields_at(tmp_path / NAME, r.offset, r.n_bytes) for r in placed] == [f for _, f in flat(many)]


def test_a_journal_cut_at_any_byte_keeps_every_whole_group_and_takes_new_ones(tmp_path, capsys):
    many = groups(4)
    write_groups(tmp_path / "whole", many, close=False)
    data = (tmp_path / "whole" / NAME).read_bytes()
    sizes, size = [], 0
    for group in many:
        lines = [journals.line_of(*record) for record in group]
        size += sum(len(line) + 1 for line in [journals._header_of(lines), *lines])
        sizes.append(size)
    assert sizes[-1] == len(data)
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        folder = Path(name)
        for n in range(len(data)):
            (folder / NAME).write_bytes(data[:n])
            write_groups(folder, [[("run", {"at": "later"})]])
            kept = sum(size <= n for size in sizes)
            assert contents(folder) == [*flat(many[:kept]), ("run", {"at": "later"})], n
    assert "warning[JOURNAL_TAIL]: dropped 1 torn bytes at journal.jnl:0" in capsys.readouterr().err


def test_one_flipped_bit_anywhere_in_a_closed_journal_is_damage_or_loses_nothing(tmp_path):
    many = groups(12, seed=1)
    write_groups(tmp_path, many)
    path = tmp_path / NAME
    data = path.read_bytes()
    seal = data.rindex(b"group ")
    assert data[seal:].split()[2:4] == [b"0", b"0"], "it ends with an empty group"
    draw = random.Random(2)
    for at in [0, seal - 1, *(draw.randrange(len(data)) for _ in range(48))]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        if at >= seal:
            continue
        with pytest.raises(IntegrityError) as caught:
            Journal(tmp_path, lambda _: None)
        assert caught.value.code == "JOURNAL_CORRUPT" and caught.value.exit_code == 3
        assert path.read_bytes() == damaged, "a damaged journal is not touched"


def test_a_bad_record_before_good_ones_inside_a_last_group_is_torn_and_not_damage(tmp_path):
    """A power loss may write the pages of one group in any order; nobody was told that it is durable."""
    many = groups(3)
    write_groups(tmp_path, many, close=False)
    path = tmp_path / NAME
    size = path.stat().st_size
    write_groups(tmp_path, [[("answered", {"key": str(i), "body": "y" * 50}) for i in range(20)]], close=False)
    data = bytearray(path.read_bytes())
    data[size + 100 : size + 300] = bytes(200)
    path.write_bytes(data)
    write_groups(tmp_path, [])
    assert contents(tmp_path) == flat(many)


def test_repair_keeps_the_good_groups_and_the_damaged_file(tmp_path):
    many = groups(6)
    write_groups(tmp_path, many)
    path = tmp_path / NAME
    data = bytearray(path.read_bytes())
    third = [i for i in range(len(data)) if data[i : i + 6] == b"group " and data[i - 1 : i] == b"\n"][1]
    data[third + 40] ^= 4
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="--repair"):
        Journal(tmp_path, lambda _: None)
    assert journals.repair(tmp_path) == 1 and journals.repair(tmp_path) == 0
    assert (tmp_path / f"{NAME}.damaged-1").read_bytes() == data
    kept = contents(tmp_path)
    assert kept == [*flat(many[:2]), *flat(many[3:])]
    write_groups(tmp_path, [[("run", {})]])
    assert contents(tmp_path) == [*kept, ("run", {})]


def test_killed_at_every_file_operation_what_was_acknowledged_is_there(tmp_path):
    many = groups(4, seed=5)

    def work(folder: Path) -> None:
        journal = Journal(folder, lambda _: None)
        for n, group in enumerate(many):
            journal.commit(group)
            (folder / "acknowledged").write_text(str(n + 1))
        journal.close()

    n = 0
    while True:
        folder = tmp_path / str(n)
        code = faults.in_child(lambda: work(folder), faults.die_inside(n))
        told = int((folder / "acknowledged").read_text()) if (folder / "acknowledged").exists() else 0
        write_groups(folder, [])
        kept = contents(folder)
        assert kept in (flat(many[:told]), flat(many[: told + 1]))
        if code == 0:
            break
        assert code == faults.DIED
        n += 1
    assert n >= 2 * len(many) and kept == flat(many)


def test_after_a_power_loss_every_acknowledged_record_is_there_and_nothing_half(tmp_path):
    many, root = groups(4, seed=3), tmp_path / "disk"
    root.mkdir()
    disk, acknowledged, n_states = Disk(root), list[tuple[str, object]](), 0
    check = tmp_path / "state"
    check.mkdir()

    def hook(operation: io.Operation) -> None:
        nonlocal n_states
        disk(operation)
        for state in disk.new_states():
            n_states += 1
            (check / NAME).write_bytes(state.get(f"answers/{NAME}") or b"")
            found = contents(check)
            assert found[: len(acknowledged)] == acknowledged
            assert found in [flat(many[:n]) for n in range(len(many) + 1)]

    with faults.hooked(hook):
        journal = Journal(root / "answers", lambda _: None)
        for group in many:
            journal.commit(group)
            acknowledged += group
            disk.forget()
        journal.close()
    assert n_states > 10


@pytest.mark.parametrize("only", ["write", "fsync"])
def test_after_a_failed_write_or_fsync_nothing_more_is_written_and_the_next_run_goes_on(only, tmp_path):
    journal = Journal(tmp_path, lambda _: None)
    journal.commit([("run", {"n": 1})])
    with faults.hooked(faults.raise_at(0, 28, only=(only,))), pytest.raises(ResourceError):
        journal.commit([("run", {"n": 2})])
    size = (tmp_path / NAME).stat().st_size
    with pytest.raises(IntegrityError, match="rerun"):
        journal.commit([("run", {"n": 3})])
    journal.close()
    assert (tmp_path / NAME).stat().st_size == size
    write_groups(tmp_path, [[("run", {"n": 4})]])
    assert contents(tmp_path)[0] == ("run", {"n": 1}) and contents(tmp_path)[-1] == ("run", {"n": 4})


def test_one_writer_at_a_time(tmp_path):
    journal = Journal(tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match="LOCKED"):
        Journal(tmp_path, lambda _: None)
    journal.close()
    Journal(tmp_path, lambda _: None).close()


def test_the_journal_is_private(tmp_path):
    write_groups(tmp_path / "new", groups(1))
    assert (tmp_path / "new" / NAME).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


class JournalMachine(RuleBasedStateMachine):
    """Commits, clean ends, deaths, torn groups: what was acknowledged is always exactly what is read."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=QUICK_DISK))
        self.acknowledged: list[tuple[str, object]] = []
        self.journal = Journal(self.folder, lambda _: None)

    @rule(texts=st.lists(st.text(max_size=20), min_size=1, max_size=3))
    def commit(self, texts: list[str]) -> None:
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        group = [("answered", {"body": text}) for text in texts]
        self.journal.commit(group)
        self.acknowledged += group

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        if clean:
            self.journal.close()
        else:
            os.close(self.journal._handle)
        self.journal = Journal(self.folder, lambda _: None)

    @rule(share=st.floats(0, 0.999), zeros=st.booleans())
    def die_while_writing(self, share: float, zeros: bool) -> None:
        os.close(self.journal._handle)
        lines = [journals.line_of("answered", {"body": "lost " * 5})] * 3
        group = "".join(f"{line}\n" for line in [journals._header_of(lines), *lines]).encode()
        kept = int(len(group) * share)
        torn = group[:kept] + (bytes(len(group) - kept) if zeros else b"")
        with (self.folder / NAME).open("ab") as file:
            file.write(torn)
        self.journal = Journal(self.folder, lambda _: None)

    @invariant()
    def what_is_read_is_what_was_acknowledged(self) -> None:
        assert contents(self.folder) == self.acknowledged

    def teardown(self) -> None:
        self.journal.close()
        io.remove_tree(self.folder)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
