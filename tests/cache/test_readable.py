"""`cache show`: what is stored at each position of a row, against the teacher, readable."""

import json
import math
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len

import tutelage
from tests.cache.labelled import Place, live_logp
from tests.verbs import tiny_runs
from tutelage.cache.reader import TeacherCache
from tutelage.errors import ConfigError

TEXTS = tiny_runs.documents(20)
CODECS = ("topk", "dense", "hidden", "threshold")


def shown(place: Place, codec: str, text: str, *, top: int = 5):
    return tutelage.cache.show(place.cache(codec), text, top=top)


@pytest.mark.parametrize("codec", CODECS[:3])
def test_entries_and_witness_are_the_teachers_numbers(place: Place, codec: str):
    text = next(text for text in TEXTS if not shown(place, codec, text).held_out)
    found = shown(place, codec, text, top=3)
    logp_TV = live_logp(place, text)
    ids = tiny_runs.tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert [position.position for position in found.positions] == list(range(len(found.positions)))
    loose = 0.02 if codec == "hidden" else 2e-3
    for here in found.positions:
        assert (here.current_id, here.next_id) == tuple(ids[here.position : here.position + 2])
        p_V = logp_TV[here.position].exp()
        assert here.next_logp_nats == pytest.approx(float(logp_TV[here.position, here.next_id]), abs=0.11)  # its step
        likely = p_V.topk(3).indices.tolist()
        assert len({entry.token_id for entry in here.entries} & set(likely)) >= 2
        for entry in here.entries:
            assert entry.probability == pytest.approx(float(p_V[entry.token_id]), abs=loose)
        kept = 8 if codec == "topk" else 3
        assert here.tail == pytest.approx(1 - float(p_V.topk(kept).values.sum()), abs=3 * loose)


def test_a_sample_is_shown_by_weight_with_its_witness(place: Place):
    text = next(text for text in TEXTS if not shown(place, "threshold", text).held_out)
    found, logp_TV = shown(place, "threshold", text, top=1000), live_logp(place, text)
    settings = TeacherCache(place.cache("threshold")).manifest.settings
    step = 1.5 / settings["m"]  # a threshold and a grain
    for here in found.positions:
        p_V = logp_TV[here.position].exp()
        weights = [entry.probability for entry in here.entries]
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1.0, abs=1e-6)
        assert len(here.entries) == here.n_entries
        for entry in here.entries:
            assert entry.probability == pytest.approx(float(p_V[entry.token_id]), abs=step)
        if here.next_id in {entry.token_id for entry in here.entries}:
            assert math.exp(here.next_logp_nats) == pytest.approx(float(p_V[here.next_id]), abs=step)
        else:
            assert here.next_logp_nats == pytest.approx(float(logp_TV[here.position, here.next_id]), abs=0.11)


def test_a_text_that_ends_inside_a_word_is_found(place: Place):
    whole = shown(place, "topk", TEXTS[3])
    for end in (5, 11, 17, 30):
        assert shown(place, "topk", TEXTS[3][:end]).positions[0].next == whole.positions[0].next


def test_only_the_positions_of_the_text_are_shown_and_the_rest_is_counted(place: Place):
    text = next(text for text in TEXTS if shown(place, "topk", text).n_positions > 20)
    few, all_ = shown(place, "topk", text[:24]), shown(place, "topk", text)
    assert len(few.positions) == 16
    assert all_.positions[:16] == few.positions
    assert f"{few.n_positions - 16} more positions" in str(few)
    assert len(all_.positions) <= all_.n_positions


def test_held_out_rows_are_found_and_named(place: Place):
    kinds = {shown(place, "topk", text).held_out for text in TEXTS}
    assert kinds == {True, False}
    text = next(text for text in TEXTS if shown(place, "topk", text).held_out)
    assert "a held-out row, whole" in str(shown(place, "topk", text))
    alone = tutelage.cache.show(place.cache("topk") / "held_out", text)
    assert alone.positions == shown(place, "topk", text).positions


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("top", [1, 5, 300])
def test_lines_are_at_most_100_columns_and_hold_no_control_characters(place: Place, codec: str, top: int):
    text = str(shown(place, codec, TEXTS[1], top=top))
    assert all(cell_len(line) <= 100 for line in text.splitlines()[1:])
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_result_is_json_with_the_raw_text(place: Place):
    value = json.loads(json.dumps(shown(place, "dense", TEXTS[2], top=2).as_json(), allow_nan=False))
    assert len(value["positions"][0]["entries"]) == 2
    assert "".join(position["current"] for position in value["positions"]).startswith(TEXTS[2][:20])


def test_a_text_that_no_row_begins_with_is_refused(place: Place):
    with pytest.raises(ConfigError, match=r"no row .* begins with 'nobody says this' \(\d+ tokens\)") as refused:
        shown(place, "topk", "nobody says this")
    assert refused.value.code == "CONFIG"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(place: Place, text: str):
    with pytest.raises(ConfigError, match="--text is empty") as refused:
        shown(place, "topk", text)
    assert refused.value.code == "CONFIG"


def test_without_the_tokens_the_way_to_get_them_is_named(place: Place, tmp_path: Path, monkeypatch):
    path = place.cache()
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="not on this machine; make them again: tutelage label RECIPE") as refused:
        tutelage.cache.show(path, TEXTS[0])
    assert refused.value.code == "CONFIG"


def test_a_cache_without_its_start_is_refused(place: Place, tmp_path: Path):
    path = place.copy(place.cache(), tmp_path / "cache")
    shutil.rmtree(path / "start")
    with pytest.raises(ConfigError, match="has no tokenizer") as refused:
        tutelage.cache.show(path, TEXTS[0])
    assert refused.value.code == "CONFIG"


def test_the_command_prints_the_table(place: Place):
    code, out, _ = tiny_runs.call("cache", "show", place.cache(), "--text", TEXTS[0], "--top", 2)
    assert code == 0
    assert "stored, most likely first" in out
