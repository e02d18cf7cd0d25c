"""The store: what it holds, what its key depends on, damage, kills, two builders, and what is said of rejects."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.data.tiny_data import BOS, END, ChatML, build_tiny, store_of, tokenizer
from tests.instruments import faults
from tutelage.data import store
from tutelage.data.build import build
from tutelage.data.sources import SourceSpec, read
from tutelage.data.tokenize import Encoder, windows
from tutelage.errors import IntegrityError, ResourceError

TEXTS = ["the cat sat on the mat " * 5, "yes", "the dog sat on the log " * 9]


def specs(*texts: object) -> list[SourceSpec]:
    return [SourceSpec(kind="examples", examples=list(texts))]


def test_rows_are_the_windows_of_the_encoded_documents():
    built = build_tiny([*specs(*TEXTS[:2]), SourceSpec(kind="examples", examples=TEXTS[2:], name="b")], max_length=16)
    encoded = Encoder(tokenizer())
    expected = []
    for number, text in enumerate(TEXTS):
        (example,) = read(specs(text)[0])
        expected += [(w, example.document, int(number == 2)) for w in windows(encoded.encode([example])[0], 16)]
    assert len(built) == len(expected) > 3
    for n, (window, document, source) in enumerate(expected):
        row = built.row(n)
        assert row.ids.tolist() == window.ids.tolist() and row.loss_mask.tolist() == window.loss_mask.tolist()
        assert built.lengths[n] == len(window.ids) and built.n_trained[n] == len(window.ids) - 1
        assert built.keys[n].tobytes() == store.key_of_row(window)
        assert built.documents[n].tobytes() == document
        assert built.sources[n] == source
    assert built.source_names == ("examples", "b")
    assert [built.name(n) for n in (0, len(built) - 1)] == ["example 0", "example 0"]
    assert built.manifest.n_tokens == built.lengths.sum()


def test_a_row_key_tells_ids_and_masks_apart():
    built = store_of([[5, 6, 7], [5, 6, 7], [5, 6, 8]], [[True] * 3, [True, False, True], [True] * 3])
    assert len({key.tobytes() for key in built.keys}) == 3


def test_rows_are_found_in_every_shard():
    rows = [[5 + n % 7] * (2 + n % 6) for n in range(40)]
    built = store_of(rows, shard_tokens=10)
    assert len(built.manifest.shard_tokens) > 5 and max(built.manifest.shard_tokens) <= 10
    assert [built.row(n).ids.tolist() for n in range(40)] == rows


def test_a_second_build_writes_nothing_and_gives_the_same_store():
    first = build_tiny(specs(*TEXTS))
    operations = faults.operations(lambda: build_tiny(specs(*TEXTS)))
    assert operations == []
    assert build_tiny(specs(*TEXTS)).manifest == first.manifest


def test_the_key_depends_on_everything_that_decides_a_row_and_on_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the cat sat")

    def folder(*, name="a.txt", fingerprint="f", max_length=8, label="s", tok=None, **settings) -> Path:
        spec = SourceSpec(kind="text", patterns=(str(tmp_path / name),), name=label, weight=settings.pop("weight", 1.0))
        return build([spec], tok or tokenizer(), fingerprint=fingerprint, max_length=max_length, **settings).path

    base = folder()
    (tmp_path / "b.txt").write_text("the cat sat")
    assert folder(name="b.txt") == folder(max_reject=0.5) == folder(weight=2.0) == base
    path.write_text("the cat saT")
    others = [
        folder(),
        folder(name="b.txt", fingerprint="g"),
        folder(name="b.txt", max_length=9),
        folder(name="b.txt", label="t"),
        folder(name="b.txt", tok=tokenizer(adds_bos=True)),
        folder(name="b.txt", train_on="answers"),
        folder(name="b.txt", renderer=ChatML()),
        folder(name="b.txt", control_text="reject"),
    ]
    assert len({base, *others}) == len(others) + 1


def test_a_flipped_bit_in_any_file_is_found():
    path = build_tiny(specs(*TEXTS, END), control_text="encode").path
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for place in range(0, len(good), max(1, len(good) // 9)):
            file.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
            with pytest.raises(IntegrityError):
                store.open_store(path)
        file.write_bytes(good)
    store.open_store(path)


@pytest.mark.parametrize("name", [store.MANIFEST, store.ROWS, "tokens-00000.bin"])
def test_a_missing_file_is_an_error_that_says_how_to_go_on(name):
    path = build_tiny(specs(*TEXTS)).path
    (path / name).unlink()
    with pytest.raises(IntegrityError, match=name):
        build_tiny(specs(*TEXTS))


def test_a_store_of_a_newer_format_is_refused():
    path = build_tiny(specs(*TEXTS)).path
    manifest = json.loads((path / store.MANIFEST).read_text())
    (path / store.MANIFEST).write_text(json.dumps(manifest | {"format_version": 2, "new_field": 1}))
    with pytest.raises(IntegrityError, match="store format 2, this tutelage reads up to 1; run: pip install -U"):
        store.open_store(path)


def test_a_build_killed_at_any_operation_is_built_again_and_nothing_is_left_over(home):
    expected = build_tiny(specs(*TEXTS)).manifest
    n_operations = len(faults.operations(lambda: build_tiny(specs(*TEXTS, "x"))))
    assert n_operations > 15
    for n in range(n_operations):
        texts = specs(*TEXTS, f"{n}")
        assert faults.in_child(lambda texts=texts: build_tiny(texts), faults.die_inside(n)) == faults.DIED
        built = build_tiny(texts)
        assert built.manifest.n_examples == len(TEXTS) + 1
    assert build_tiny(specs(*TEXTS)).manifest == expected
    assert not [p.name for p in (home / "data").iterdir() if "partial" in p.name]


def test_a_full_disk_stops_the_build_and_the_same_call_then_succeeds():
    with faults.hooked(faults.raise_at(1, errno.ENOSPC, only=("write",))), pytest.raises(ResourceError) as caught:
        build_tiny(specs(*TEXTS))
    assert caught.value.code == "DISK_FULL"
    assert build_tiny(specs(*TEXTS)).manifest.n_rows > 0


def test_two_processes_that_build_one_store_both_get_it_whole():
    texts = specs(*(f"the cat {n} sat on the mat" for n in range(300)))
    children = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            try:
                built = build_tiny(texts)
                os._exit(0 if len(built) == 300 else 1)
            finally:
                os._exit(2)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert len(build_tiny(texts)) == 300


def test_files_are_private():
    built = build_tiny(specs(*TEXTS))
    assert {stat.S_IMODE(p.stat().st_mode) for p in built.path.iterdir()} == {0o600}
    assert stat.S_IMODE(built.path.stat().st_mode) == 0o700


def test_a_few_rejects_are_left_out_said_and_written_down(tmp_path, capsys):
    rejects = tmp_path / "reject.jsonl"
    for _ in range(2):  # the second time the store is only opened
        built = build_tiny(specs(*["yes"] * 199, ""), max_reject=0.01, reject_path=rejects)
        assert "warning[REJECTED]: 1 of 200 rows rejected (first: example 199, empty text)" in capsys.readouterr().err
    assert len(built) == 199
    line = {"source": "examples", "name": "example 199", "reason": "empty text"}
    assert [json.loads(x) for x in rejects.read_text().splitlines()] == [line]


def test_too_many_rejects_are_an_error_and_no_store(tmp_path, home):
    rejects = tmp_path / "reject.jsonl"
    with pytest.raises(IntegrityError, match=r"3 of 200 rows rejected \(first: example 7, empty text\)") as caught:
        build_tiny(specs(*["yes"] * 7, "", *["yes"] * 190, "", ""), max_reject=0.01, reject_path=rejects)
    assert caught.value.code == "TOO_MANY_REJECTS" and caught.value.exit_code == 3
    assert len(rejects.read_text().splitlines()) == 3
    assert not [p for p in (home / "data").iterdir() if p.is_dir() and "partial" not in p.name]


def test_the_limit_holds_for_a_store_that_was_built_under_another_limit():
    build_tiny(specs("yes", ""), max_reject=0.5)
    with pytest.raises(IntegrityError, match="1 of 2 rows rejected"):
        build_tiny(specs("yes", ""), max_reject=0.1)


def test_only_defective_rows_stop_early():
    class Rows:
        def __iter__(self):
            return iter([""] * 12_000)

    with pytest.raises(IntegrityError, match="rows rejected") as caught:
        build_tiny([SourceSpec(kind="examples", examples=Rows())])
    assert "of 12000" not in caught.value.message


def test_control_text_is_counted_and_rejected_on_request(capsys):
    texts = ["yes", f"a {END} b", f"{BOS}"]
    built = build_tiny(specs(*texts))
    assert "warning[CONTROL_TEXT]: 2 rows contain control-token text, encoded as plain text" in capsys.readouterr().err
    assert len(built) == 3
    assert len(build_tiny(specs(*texts), control_text="reject", max_reject=0.9)) == 1


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(IntegrityError) as caught:
        build_tiny(specs("", ""), max_reject=1.0)
    assert caught.value.code == "NO_TOKENS"
    with pytest.raises(IntegrityError, match="the sources hold no document"):
        build_tiny(specs())


def test_progress_is_reported():
    seen = []
    build_tiny(specs(*TEXTS), progress=lambda n_documents, n_tokens: seen.append((n_documents, n_tokens)))
    assert seen[-1] == (3, build_tiny(specs(*TEXTS)).manifest.n_tokens)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the cat sat")
    spec = SourceSpec(kind="text", patterns=(str(path),))
    with pytest.raises(IntegrityError, match="changed while it was read"):
        build_tiny([spec], progress=lambda *_: path.write_text("the cat sat on"))


def test_rows_are_read_without_copying_the_file():
    built = store_of([[5, 6, 7]] * 3)
    assert not built.row(1).ids.flags.writeable
    assert isinstance(built.row(1).ids.base, np.memmap | np.ndarray)
