"""The teacher's loss on each row: what it is, kept part by part, the same from a cache; whole runs that follow it."""

import json

import numpy as np
import pytest
import torch

import tutelage
from tests.cache import tiny_cache
from tests.recipe_trees import MINIMAL, error_of
from tests.recipe_trees import data as of_data
from tests.verbs import tiny_runs
from tutelage.cache.reader import TeacherCache
from tutelage.cache.rows import RowSet
from tutelage.cache.writer import write
from tutelage.errors import ConfigError, IntegrityError, NumericError
from tutelage.home import home
from tutelage.models.load import load_model
from tutelage.planning.contest import base_of
from tutelage.recipe import load_recipe
from tutelage.training import curriculum
from tutelage.training.curriculum import row_losses
from tutelage.training.prepare import InMemory, prepare


@pytest.fixture
def rows(monkeypatch):
    """Rows of a made-up store, in parts of 40 positions."""
    monkeypatch.setattr(curriculum, "PART_POSITIONS", 40)
    store = tiny_cache.Rows(30)
    return RowSet.of([(store, np.arange(30))])


def by_key(some):
    """A loss for each row that its key alone decides."""
    return some.keys_R[:, 0].astype(np.float64) / 7.0


def test_what_was_measured_before_a_kill_stays_and_nothing_is_asked_twice(rows):
    asked = []

    def ask(some, dies_at=10**9):
        if len(asked) == dies_at:
            raise KeyboardInterrupt
        asked.append(len(some))
        return by_key(some)

    with pytest.raises(KeyboardInterrupt):
        row_losses(rows, lambda some: ask(some, 3), how={"teacher": "killed"})
    assert len(asked) == 3
    found = row_losses(rows, ask, how={"teacher": "killed"})
    assert sum(asked) == len(rows) and len(asked) > 4
    assert np.array_equal(found, by_key(rows))
    assert np.array_equal(row_losses(rows, ask, how={"teacher": "killed"}), found) and sum(asked) == len(rows)
    row_losses(rows, ask, how={"teacher": "another"})
    row_losses(rows.take(slice(1, None)), ask, how={"teacher": "killed"})
    assert sum(asked) == 3 * len(rows) - 1


def test_a_part_that_is_damaged_or_of_another_place_is_refused(rows):
    before = {*(home() / "losses").rglob("part-*")}
    row_losses(rows, by_key, how={"teacher": "whole"})
    first, second = sorted({*(home() / "losses").rglob("part-*")} - before)[:2]
    whole = first.read_bytes()
    for wrong in (whole[:8] + bytes([whole[8] ^ 1]) + whole[9:], whole[:-8], second.read_bytes(), b""):
        first.write_bytes(wrong)
        with pytest.raises(IntegrityError, match=f"{first} is damaged; it can be made again: rm") as caught:
            row_losses(rows, by_key, how={"teacher": "whole"})
        assert caught.value.code == "CHECKSUM"
    first.unlink()


def test_a_loss_that_is_no_number_stops_before_anything_is_kept(rows):
    with pytest.raises(NumericError, match="loss on 8 rows is no number"):
        row_losses(rows, lambda some: np.full(len(some), np.nan), how={"teacher": "nan"})
    assert np.array_equal(row_losses(rows, by_key, how={"teacher": "nan"}), by_key(rows))


@pytest.mark.parametrize("codec", ["dense", "topk"])
def test_a_cache_has_the_loss_that_its_teacher_has(codec, tmp_path):
    teacher, store = tiny_cache.teacher(), tiny_cache.Rows(12)
    write(tmp_path, tiny_cache.job(store, codec=codec, asked_teacher=teacher))
    rows = RowSet.of([(store, np.arange(12))])
    found = curriculum._stored(TeacherCache(tmp_path), rows)
    for n, row_number in enumerate(rows.numbers_R.tolist()):
        assert found[n] == pytest.approx(loss_of(teacher.model, store.row(row_number)), rel=0.03)


@torch.no_grad()
def loss_of(model, row):
    """The mean loss of a row by the definition, alone in its pass."""
    logp_TV = torch.log_softmax(model(torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0].double(), -1)
    trained = np.flatnonzero(row.loss_mask[1:])
    return -np.mean([float(logp_TV[t, int(row.ids[t + 1])]) for t in trained])


# --- whole runs ---
LESS = {"overlap": False, "triggers": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curriculum")
    tiny_runs.recipe(folder)
    return folder


def recipe(place, **more):
    data = {"curriculum": {"by": "teacher_loss", "start": 0.2, "until": 0.9}}
    return tiny_runs.recipe(place, data=data, student={"config": {"num_hidden_layers": 1}}, evaluation=LESS, **more)


FAILING = """
from pathlib import Path

def watch(event):
    if event.kind == "step" and event.step == 3 and not Path("{flag}").exists():
        Path("{flag}").touch()
        raise ValueError("killed")
"""


@pytest.mark.slow
def test_a_run_shows_rows_by_the_teachers_loss_and_goes_on_bitwise_after_a_stop(place, tmp_path, capsys):
    (tmp_path / "watch.py").write_text(FAILING.format(flag=tmp_path / "was-killed"))
    training = {"callbacks": f"{tmp_path}/watch.py:watch", "evaluate_every": 0.5}
    with pytest.raises(ConfigError, match="killed"):
        tutelage.train(recipe(place, training=training), run_dir=tmp_path / "run")
    assert "the teacher reads the training data" in capsys.readouterr().err
    provenance = tmp_path / "run" / "provenance.json"
    recorded = provenance.read_text()
    order = json.loads(recorded)["data"]["order"]
    provenance.write_text(recorded.replace(order, "0" * 64))
    with pytest.raises(ConfigError, match="data.order") as caught:
        tutelage.train(recipe(place, training=training), run_dir=tmp_path / "run")
    assert caught.value.code == "RESUME_MISMATCH"
    provenance.write_text(recorded)
    run = tutelage.train(recipe(place, training=training), run_dir=tmp_path / "run")
    whole = tutelage.train(recipe(place, training=training), run_dir=tmp_path / "whole")
    said = capsys.readouterr().err
    assert "goes on from step" in said and "reads the training data" not in said
    tiny_runs.assert_same_outcome(run.path, whole.path)


@pytest.mark.slow
def test_the_first_rows_are_those_that_the_teacher_asked_alone_or_read_from_its_cache_finds_easiest(place):
    cached = {
        **recipe(place, cache={"codec": "hidden"}),
        "teacher": {"model": str(place / "teacher"), "cache": str(place / "cache")},
    }
    tutelage.label(cached)
    live = prepare(load_recipe(recipe(place)), memory=InMemory()).loader
    model, ranks_R = load_model(str(place / "teacher")), live._curriculum.ranks_R
    losses_R = np.array([loss_of(model, live.store.row(number)) for number in live.rows.tolist()])
    assert (np.diff(losses_R[np.argsort(ranks_R)]) > -1e-5).all()
    first = {live.store.keys[row].tobytes().hex() for row in live.rows[ranks_R < live._curriculum.pool(0)]}
    assert {key for batch in live.step(0) for key in batch.row_keys} <= first
    assert live._curriculum.n_steps == 4  # until 0.9 of four steps
    stored = prepare(load_recipe(cached), memory=InMemory()).loader._curriculum
    assert np.corrcoef(stored.ranks_R, ranks_R)[0, 1] > 0.95  # a cache keeps it in eight bits


API, OWN = {"base_url": "http://x/v1", "model": "m"}, {"student": {"model": "a/b"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"teacher": {"answers": "a", "api": API}, "loss": "cross_entropy", **OWN},
            "data.curriculum needs a teacher's loss on the rows, and text has none; name teacher.model or "
            "teacher.cache, or leave it out",
        ),
        ({"teacher": None, "loss": "cross_entropy", **OWN}, "and the recipe has no teacher; name"),
        ({"teacher": {"model": "a/b", "train": True}, "student": {"config": {"num_hidden_layers": 1}}},
         "data.curriculum and teacher.train exclude each other: its loss changes"),
        ({"mix": "tokens"}, "data.curriculum and data.mix: tokens exclude each other"),
    ],
)  # fmt: skip
def test_where_nobody_has_a_loss_that_stays_a_curriculum_is_refused_with_the_way_out(changes, said):
    mix = {"mix": changes.pop("mix")} if "mix" in changes else {}
    sources = [{"text": "a/*.txt"}, {"text": "b/*.txt"}]
    assert said in error_of({**changes, **of_data(sources=sources, curriculum="teacher_loss", **mix)})


def test_a_comparison_of_techniques_has_no_order_by_the_teacher():
    checked = load_recipe({**MINIMAL, **of_data(curriculum="teacher_loss")})
    with pytest.raises(ConfigError, match=r"not all have the teacher's loss; leave data\.curriculum out"):
        base_of(checked, start=None)
