"""Paired sentences: files, log-probabilities against the model's own logits, and what arrived, in closed form."""

import json

import numpy as np
import pytest
import torch

from tests import tiny
from tests.verbs import tiny_runs
from tutelage.errors import IntegrityError
from tutelage.evaluation import pairs, probes
from tutelage.evaluation.pairs import Pair
from tutelage.evaluation.probes import Scored, result_of, score


def records(gaps, *, categories=None):
    """By model the gaps of its pairs."""
    return [
        Scored(probe="p", name=str(i), category=categories[i] if categories else "", model=model,
               stereotype_nats=-5 + gap, other_nats=-5.0)
        for model, of_model in gaps.items()
        for i, gap in enumerate(of_model)
    ]  # fmt: skip


def test_each_published_shape_gives_its_pairs(tmp_path):
    crows = "id,sent_more,sent_less,stereo_antistereo,bias_type\n0,M,L,antistereo,age\n"
    (tmp_path / "crows.csv").write_text(crows)
    labels = ("stereotype", "anti-stereotype", "unrelated")
    inter = {"context": "She came.", "bias_type": "gender", "sentences": [
        {"sentence": label, "gold_label": label} for label in labels]}  # fmt: skip
    intra = {**inter, "context": "The BLANK came."}
    own = {"stereotype": "a", "anti_stereotype": "b", "category": "c"}
    bias = {"pro_stereotyped": "d", "anti_stereotyped": "e"}
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (inter, intra, own, bias)))
    found = pairs.read([str(tmp_path / "*")])
    shown = [(p.stereotype, p.other, p.category) for p in found["all.jsonl"]]
    assert shown[:2] == [("She came. stereotype", "She came. anti-stereotype", "gender"), (*labels[:2], "gender")]
    assert shown[2:] == [("a", "b", "c"), ("d", "e", "")]
    assert [(p.stereotype, p.other, p.category) for p in found["crows.csv"]] == [("M", "L", "age")]


def test_stereosets_own_file_and_a_list_are_read_and_lines_by_that_name_too(tmp_path):
    own = {"stereotype": "a", "anti_stereotype": "b", "category": "c"}
    labels = ("anti-stereotype", "stereotype", "unrelated")
    sentences = [{"sentence": label, "gold_label": label} for label in labels]
    entry = {"id": "1", "context": "She came.", "bias_type": "gender", "sentences": sentences}
    published = {"version": "1.0", "data": {"intersentence": [entry], "intrasentence": [entry, entry]}}
    for name, text in (
        ("published", json.dumps(published, indent=1)), ("list", json.dumps([own])),
        ("line", json.dumps(own)), ("lines", f"{json.dumps(own)}\n" * 2),
    ):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
    found = pairs.read([str(tmp_path / "*.json")])
    assert {name: len(rows) for name, rows in found.items()} == {
        "published.json": 3, "list.json": 1, "line.json": 1, "lines.json": 2}  # fmt: skip
    first = found["published.json"][0]
    assert (first.stereotype, first.category) == ("She came. stereotype", "gender")
    assert first.name.endswith("published.json:intersentence[0]")
    published["data"]["intrasentence"][1] = {**entry, "sentences": entry["sentences"][1:]}
    (tmp_path / "published.json").write_text(json.dumps(published))
    with pytest.raises(IntegrityError, match=r"intrasentence\[1\]: 0 sentences with the gold_label anti-stereotype"):
        pairs.read([str(tmp_path / "published.json")])
    (tmp_path / "published.json").write_text('{"data": {"intersentence": 3}}')
    with pytest.raises(IntegrityError, match=r"data\.intersentence is no list \(int\)"):
        pairs.read([str(tmp_path / "published.json")])


@pytest.mark.parametrize("row", ['{"stereotype": "a"}', '{"stereotype": "a", "anti_stereotype": " "}', "{", '"text"'])
def test_a_row_that_is_no_pair_is_named_with_its_line(row, tmp_path):
    good = json.dumps({"stereotype": "a", "anti_stereotype": "b"})
    (tmp_path / "p.jsonl").write_text(f"{good}\n{row}\n")
    with pytest.raises(IntegrityError, match=r"p\.jsonl:2") as caught:
        pairs.read([str(tmp_path / "p.jsonl")])
    assert caught.value.code == "DATA_READ"


def test_files_of_one_name_in_several_folders_are_all_kept(tmp_path):
    for i, folder in enumerate(("a/x", "b/x", "c")):
        (tmp_path / folder).mkdir(parents=True)
        row = {"stereotype": f"s{i}", "anti_stereotype": "o"}
        (tmp_path / folder / "p.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / folder / f"own-{i}.jsonl").write_text(json.dumps(row) + "\n")
    found = pairs.read([str(tmp_path / "**/*.jsonl")])
    assert {name: [p.stereotype for p in of_one] for name, of_one in found.items()} == {
        "a/x/p.jsonl": ["s0"], "b/x/p.jsonl": ["s1"], "c/p.jsonl": ["s2"],
        "own-0.jsonl": ["s0"], "own-1.jsonl": ["s1"], "own-2.jsonl": ["s2"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("sent_more,sent_less\nna\u00efve,b\n".encode("latin-1"), "iconv -f latin1 -t utf-8"),
        (b"sent_more,sent_less\na," + b"b" * 140_000 + b"\n", "field larger than field limit"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_what_to_do(data, said, tmp_path):
    (tmp_path / "p.csv").write_bytes(data)
    with pytest.raises(IntegrityError, match=said) as caught:
        pairs.read([str(tmp_path / "p.csv")])
    assert caught.value.code == "DATA_READ" and "p.csv" in caught.value.message


def test_a_text_is_scored_with_its_first_token_and_without_its_end():
    tokenizer = tiny_runs.tokenizer()
    model = tiny.llama(seed=1, vocabulary=len(tokenizer)).requires_grad_(False)
    texts = Pair(name="1", stereotype="the cat sat on the mat.", other="a <|im_end|> dog")
    (found,) = score({"m": model}, tokenizer, pairs={"p": [texts]}, n_vocabulary=len(tokenizer))
    for text, value in ((texts.stereotype, found.stereotype_nats), (texts.other, found.other_nats)):
        backend = tokenizer.backend_tokenizer
        backend.encode_special_tokens = True  # what spells a control token is plain text
        ids = backend.encode(text, add_special_tokens=False).ids
        backend.encode_special_tokens = False
        whole = torch.tensor([[tokenizer.bos_token_id, *ids]])
        logp = torch.log_softmax(model(input_ids=whole).logits[0], -1)
        assert value == pytest.approx(float(sum(logp[i, token] for i, token in enumerate(ids))), abs=1e-10)


def test_a_copy_of_the_teacher_has_all_of_its_skew_and_another_model_none():
    draw = np.random.default_rng(0)
    teacher = draw.normal(1.0, 2.0, 300)
    gaps = {"teacher": teacher, "before": draw.normal(0, 1, 300), "copy": teacher, "half": 0.5 * teacher + 1}
    (found,) = result_of(records(gaps), teacher="teacher", before="before")
    assert found.arrived["copy"].slope.value == pytest.approx(1) and found.arrived["copy"].correlation == pytest.approx(
        1
    )
    assert found.arrived["copy"].slope.stderr == pytest.approx(0, abs=1e-12)
    assert found.arrived["half"].slope.value == pytest.approx(0.5)
    before = found.arrived["before"].slope
    assert abs(before.value) < 3 * before.stderr and found.arrived["copy"].over_before.decided
    assert found.skews["teacher"].prefers.value == np.mean(teacher > 0) and found.skews["teacher"].decided
    assert found.skews["copy"] == found.skews["teacher"] and not found.skews["before"].decided


def test_the_slopes_interval_covers_the_truth_with_unequal_variances():
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        x = draw.normal(0, 1, 80)
        y = 0.4 * x + draw.normal(0, 0.3 + np.abs(x))
        (found,) = result_of(records({"teacher": x, "student": y}), teacher="teacher", before=None)
        slope = found.arrived["student"].slope
        held += abs(slope.value - 0.4) <= 1.99 * slope.stderr
    assert 0.88 <= held / 300 <= 0.985


def test_equal_texts_count_half_categories_are_apart_and_a_pair_without_a_number_is_left_out():
    gaps = {"teacher": [1, -1, 0, np.nan], "student": [2, 2, 0, 1]}
    (found,) = result_of(records(gaps, categories=["a", "b", "a", "b"]), teacher="teacher", before=None)
    assert (found.n_pairs, found.n_unscored) == (4, 1)
    assert found.skews["teacher"].prefers.value == 0.5 and found.skews["student"].prefers.value == pytest.approx(5 / 6)
    assert found.categories["b"]["student"].prefers.n == 1 and found.categories["a"]["student"].prefers.value == 0.75
    with pytest.raises(IntegrityError, match="none of 2 pairs"):
        result_of(records({"teacher": [np.nan, 1], "student": [1, np.inf]}), teacher="teacher", before=None)


def test_models_without_a_skew_are_said_to_have_one_in_one_of_twenty_cases_at_most():
    draw = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        gaps = {name: draw.normal(0, 1, 60) for name in "abcd"}
        (found,) = result_of(records(gaps), teacher=None, before=None)
        alarms += any(skew.decided for skew in found.skews.values())
    assert alarms <= 18  # 10 expected at most


def test_probes_are_the_same_when_read_from_their_records(tmp_path):
    draw = np.random.default_rng(3)
    made = records({"teacher": draw.normal(0, 1, 9), "student": draw.normal(0, 1, 9)})
    assert probes.read(tmp_path) == ()
    assert (
        probes.read(tmp_path) != probes.write(tmp_path, made, teacher="teacher", before=None) == probes.read(tmp_path)
    )
