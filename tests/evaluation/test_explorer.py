"""The explorer: which texts, and what teacher and student expected at each token, against a plain forward."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.evaluation.conftest import N_VOCABULARY, batches_of, rows_of_ids, tiny_model
from tests.evaluation.test_stats import sequence
from tests.verbs.tiny_runs import tokenizer
from tutelage.errors import IntegrityError
from tutelage.evaluation import explorer
from tutelage.evaluation.explorer import TOP, Expected, ExploredText, Explorer, Place
from tutelage.evaluation.score import score_models
from tutelage.types import IGNORED, Batch, LogitTargets, TokenView


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


def explored(models, batches, tokens, *, scores=None):
    found = scores or score_models(models, batches, teacher="teacher", n_vocabulary=N_VOCABULARY)
    return explorer.explore(
        models, batches, found, tokenizer=tokens, n_vocabulary=N_VOCABULARY, set_name="held_out"
    )  # fmt: skip


def test_every_token_has_the_kl_and_the_probabilities_of_a_plain_forward(teacher, student, tokens):
    rows = rows_of_ids(5)
    found = explored({"teacher": teacher, "student": student}, batches_of(rows, size=2), tokens)
    assert sorted(text.row for text in found.texts) == list(range(5))
    for text in found.texts:
        assert list(text.ids) == rows[text.row].tolist()
        logp = {
            name: torch.log_softmax(model(rows[text.row][None]).logits[0, :, :N_VOCABULARY].double(), -1)
            for name, model in (("teacher", teacher), ("student", student))
        }
        p = logp["teacher"].exp()
        kl_T = (p * (logp["teacher"] - logp["student"])).sum(-1)
        assert [place.at for place in text.places] == list(range(1, len(rows[text.row])))
        for place in text.places:
            assert place.kl_nats["student"] == pytest.approx(float(kl_T[place.at - 1]), abs=1e-4)
            for name, expected in place.expected.items():
                here_V = logp[name][place.at - 1].exp()
                true = float(here_V[text.ids[place.at]])
                assert expected.ids == tuple(here_V.argsort(descending=True)[:TOP].tolist())
                assert expected.probabilities == pytest.approx(sorted(here_V.tolist())[-1 : -TOP - 1 : -1], abs=1e-4)
                assert expected.true_probability == pytest.approx(true, abs=1e-4)
                assert expected.true_rank == 1 + int((here_V > true).sum())
        assert text.kl_nats["student"] == pytest.approx(float(kl_T[:-1].mean()), abs=1e-4)


def test_a_copy_of_the_teacher_disagrees_nowhere(teacher, tokens):
    found = explored({"teacher": teacher, "student": tiny_model(1)}, batches_of(rows_of_ids(3), size=3), tokens)
    places = [place for text in found.texts for place in text.places]
    assert {place.kl_nats["student"] for place in places} == {0.0}
    assert all(place.expected["student"] == place.expected["teacher"] for place in places)


def test_a_packed_row_and_a_mask_change_neither_the_text_nor_its_numbers(teacher, student, tokens):
    first, second = rows_of_ids(2)
    ids_BT = torch.cat([first, second])[None]
    labels_BT = ids_BT.clone()
    labels_BT[0, [0, 1, 2, len(first)]] = IGNORED  # the second and third tokens of the first are a prompt
    positions_BT = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
    view = TokenView.of(ids_BT, labels_BT, positions_BT)
    packed = [(Batch(views={"tiny": view}), (view.index_N >= len(first)).long())]
    models = {"teacher": teacher, "student": student}
    alone = {text.row: text for text in explored(models, batches_of([first, second], size=1), tokens).texts}
    together = {text.row: text for text in explored(models, packed, tokens).texts}
    assert {row: text.ids for row, text in together.items()} == {0: tuple(first.tolist()), 1: tuple(second.tolist())}
    assert together[1].places == alone[1].places
    assert together[0].places == alone[0].places[2:]


def test_a_stored_teacher_is_asked_for_its_rows(teacher, student, tokens):
    class Stored:
        n_parameters = parameter_bytes = 0

        def targets(self, batch):
            hidden = teacher(batch.view.ids_BT).logits.flatten(0, 1)
            return LogitTargets(logits_NV=hidden[batch.view.index_N, :N_VOCABULARY])

    batches = batches_of(rows_of_ids(4), size=1)
    live = explored({"teacher": teacher, "student": student}, batches, tokens)
    assert explored({"teacher": Stored(), "student": student}, batches, tokens) == live


def test_chosen_are_the_hardest_the_median_and_the_easiest_of_the_texts_that_are_long_enough():
    kl = {row: float((7 * row) % 40) for row in range(40)}
    scores = [replace(sequence(row), n_tokens=10 if kl[row] in (39.0, 0.0) else 30) for row in range(40)]
    chosen = explorer._chosen(kl, scores)
    assert [kl[row] for row, kind in chosen if kind == "hardest"] == [38.0, 37.0, 36.0, 35.0]
    assert [kl[row] for row, kind in chosen if kind == "median"] == [21.0, 20.0, 19.0, 18.0]
    assert [kl[row] for row, kind in chosen if kind == "easiest"] == [4.0, 3.0, 2.0, 1.0]
    few = explorer._chosen({row: kl[row] for row in range(5)}, [replace(s, n_tokens=2) for s in scores])
    assert [kl[row] for row, _ in few] == sorted((kl[row] for row in range(5)), reverse=True)
    assert [kind for _, kind in few] == ["hardest", "hardest", "median", "median", "easiest"]


def test_a_row_without_a_number_is_never_shown(teacher, student, tokens):
    models, batches = {"teacher": teacher, "student": student}, batches_of(rows_of_ids(4), size=2)
    scores = score_models(models, batches, teacher="teacher", n_vocabulary=N_VOCABULARY)
    scores["student"][2] = replace(scores["student"][2], n_unscored=1, kl_nats=math.nan)
    found = explored(models, batches, tokens, scores=scores)
    assert sorted(text.row for text in found.texts) == [0, 1, 3]


def test_without_a_teacher_or_a_student_there_is_no_explorer(student, tokens):
    batches = batches_of(rows_of_ids(2), size=2)
    scores = score_models({"student": student}, batches, teacher=None, n_vocabulary=N_VOCABULARY)
    assert explored({"student": student}, batches, tokens, scores=scores) is None
    scores = score_models({"teacher": student}, batches, teacher="teacher", n_vocabulary=N_VOCABULARY)
    assert explored({"teacher": student}, batches, tokens, scores=scores) is None


def test_the_pieces_of_a_text_are_the_text_and_a_character_is_never_cut(tokens):
    text = "the cat – naïve 漢字 🙂 end"
    ids = tokens(text)["input_ids"]
    pieces = explorer.pieces_of(tokens, ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_is_written_is_read_again(teacher, student, tokens, tmp_path):
    found = explored({"teacher": teacher, "a": student, "b": tiny_model(5)}, batches_of(rows_of_ids(3), size=2), tokens)
    assert found.students == ("a", "b")
    explorer.write(tmp_path, found)
    assert explorer.read(tmp_path) == found
    assert explorer.read(tmp_path / "nowhere") is None
    stored = json.loads((tmp_path / explorer.EXPLORER).read_text())
    (tmp_path / explorer.EXPLORER).write_text(json.dumps({**stored, "format": 99}))
    with pytest.raises(IntegrityError, match="has format 99.*evaluate .* --force"):
        explorer.read(tmp_path)


def test_the_file_of_the_longest_texts_stays_below_a_megabyte(tmp_path):
    expected = Expected(
        ids=tuple(range(49_000, 49_008)), probabilities=(0.1234,) * 8, true_probability=0.1234, true_rank=12_345
    )
    places = tuple(
        Place(at=n + 1, kl_nats={"student": 1.2345}, expected={"teacher": expected, "student": expected})
        for n in range(explorer._POSITIONS)
    )
    text = ExploredText(
        row=400, kind="hardest", kl_nats={"student": 1.2345}, ids=(49_000,) * 225, pieces=(" token",) * 225,
        places=places,
    )  # fmt: skip
    whole = Explorer(
        teacher="teacher", students=("student",), set_name="held_out", n_rows=400, texts=(text,) * 12,
        tokens={n: " token" for n in range(40_000, 50_000)},
    )  # fmt: skip
    explorer.write(tmp_path, whole)
    assert (tmp_path / explorer.EXPLORER).stat().st_size < 1_000_000
