"""An endpoint's log-probabilities and the student's tokens: the same ones byte for byte, or refused with the reason."""

import json
import math

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.generation import grey
from tests.verbs import tiny_runs
from tutelage.data.example import Example, Message
from tutelage.data.tokenize import Encoder
from tutelage.errors import ConfigError
from tutelage.generation.logprobs import Unusable, written_of
from tutelage.generation.soft import Matcher
from tutelage.models.template import Renderer
from tutelage.models.token_bytes import token_bytes

TEXT = "the cat sat on the mat. café 😀"
OWN = tiny_runs.tokenizer()


@pytest.fixture(scope="module")
def row():
    with Renderer.of(OWN) as renderer:
        messages = (Message("user", "who sat?"), Message("assistant", TEXT))
        return Encoder(OWN, renderer=renderer, train_on="answers").encode(
            [Example(source="s", name="n", messages=messages)]
        )[0]


def matched(row, content, *, k=4, is_cut=False):
    return Matcher(OWN, k=k).match(row, written_of(grey.body_of(TEXT, content)), is_cut=is_cut)


def test_every_token_has_the_bytes_that_its_decoder_gives():
    data = token_bytes(OWN)
    assert len(data) == len(OWN) - 2 and all(grey.data_of(OWN, n) == found for n, found in data.items())
    ids = OWN.backend_tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert b"".join(data[n] for n in ids) == TEXT.encode()


def test_pieces_with_marked_spaces_and_bytes_are_read_and_other_tokenizers_refused():
    vocab = {"<s>": 0, "<0x0A>": 1, "\u2581the": 2, "caf\u00e9": 3}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    own = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert token_bytes(own) == {1: b"\n", 2: b" the", 3: "caf\u00e9".encode()}
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ConfigError, match="neither byte-level nor SentencePiece"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=words))


@pytest.mark.parametrize("ids", [False, True])
def test_the_numbers_of_the_endpoint_stand_at_the_row_s_own_tokens_and_the_rest_is_the_tail(row, ids):
    content = grey.content_of(OWN, TEXT, k=4, ids=ids)
    soft = matched(row, content)
    answer = row.ids[row.loss_mask]
    assert len(soft.tail_N) == len(answer) == len(content) + 1 and soft.n_hard == 1
    for n, entry in enumerate(content):
        assert soft.ids_NK[n].tolist() == [t["_id"] for t in entry["top_logprobs"]]
        assert np.allclose(soft.logp_NK[n], [t["logprob"] for t in entry["top_logprobs"]])
        assert math.isclose(np.exp(soft.logp_NK[n]).sum() + math.exp(soft.tail_N[n]), 1.0)
        assert soft.next_logp_N[n] == entry["logprob"] and soft.ids_NK[n][1] == answer[n]
    assert soft.ids_NK[-1][0] == answer[-1] and soft.logp_NK[-1].tolist() == [0.0, -np.inf, -np.inf, -np.inf]
    assert soft.tail_N[-1] == -np.inf and len(set(soft.ids_NK[-1].tolist())) == 4


def test_an_end_that_the_endpoint_reports_has_its_own_numbers(row):
    content = grey.content_of(OWN, TEXT, k=4, ids=True, end=True)
    soft = matched(row, content)
    assert soft.n_hard == 0 and soft.ids_NK[-1][1] == row.ids[row.loss_mask][-1]
    without_id = [*content[:-1], {k: v for k, v in content[-1].items() if k != "id"}]
    assert matched(row, without_id).n_hard == 1


def test_a_control_token_that_the_student_lacks_goes_to_the_tail(row):
    content = grey.content_of(OWN, TEXT, k=4)
    content[0]["top_logprobs"][3] |= {"token": "<|eot|>", "bytes": None}
    soft = matched(row, content)
    assert soft.logp_NK[0][3] == -np.inf
    kept = sum(math.exp(t["logprob"]) for t in content[0]["top_logprobs"][:3])
    assert math.isclose(math.exp(soft.tail_N[0]), 1 - kept)


def _other_segmentation(content):
    first, second = content[0], content[1]
    joined = {**first, "token": first["token"] + second["token"], "bytes": first["bytes"] + second["bytes"]}
    return [joined, *content[2:]]


def _changed(n, **fields):
    def change(content):
        content[n] |= fields
        return content

    return change


def _change_top(n, **fields):
    def change(content):
        content[0]["top_logprobs"][n] |= fields
        return content

    return change


REFUSED = {
    "the text cut into other tokens": (_other_segmentation, "not the student's"),
    "one token missing": (lambda c: c[:-1], "not the student's"),
    "one token too many": (lambda c: [*c, c[-1], c[-1]], "not the student's"),
    "another byte": (_changed(3, bytes=[1]), "not the student's: token 3"),
    "the same bytes under another id": (_changed(2, id=7), "not the student's: token 2 is 7"),
    "bytes that are lost": (_changed(1, token="\ufffd", bytes=None), "does not say the bytes"),
    "an alternative that is no token": (_change_top(0, token=" zyx", bytes=list(b" zyx")), "is none of them"),
    "an alternative named twice": (_change_top(2, token="!", bytes=[33]), "twice"),
    "probabilities above 1": (_change_top(0, logprob=-0.001), "sum to"),
    "a positive log-probability": (_change_top(0, logprob=0.7), "is 0.7"),
    "its own token with another number": (_changed(0, logprob=-9.0), "contradicts"),
    "no number": (_changed(0, logprob=None), "shape"),
    "too few alternatives": (lambda c: [{**c[0], "top_logprobs": c[0]["top_logprobs"][:3]}, *c[1:]], "names 3 tokens"),
    "none at all": (lambda c: [], "no log-probabilities"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_the_same_tokens_is_refused_with_the_reason(row, what):
    change, why = REFUSED[what]
    content = grey.content_of(OWN, TEXT, k=4)
    if what == "an alternative named twice":
        content[0]["top_logprobs"][0] |= {"token": "!", "bytes": [33]}
    with pytest.raises(Unusable, match=why):
        matched(row, change(content))


def test_another_tokenizer_is_refused_even_where_the_text_is_the_same(row):
    other = tiny_runs.tokenizer(seed=1)
    with pytest.raises(Unusable, match="not the student's"):
        matched(row, grey.content_of(other, TEXT, k=4))


def test_a_cut_answer_has_no_hard_end(row):
    with pytest.raises(Unusable, match="was cut"):
        matched(row, grey.content_of(OWN, TEXT, k=4), is_cut=True)


def test_the_lists_of_the_older_interface_say_the_same():
    content = grey.content_of(OWN, "the mat", k=3)
    lists = {
        "tokens": [c["token"] for c in content],
        "token_logprobs": [c["logprob"] for c in content],
        "top_logprobs": [{t["token"]: t["logprob"] for t in c["top_logprobs"]} for c in content],
    }
    body = json.dumps({"choices": [{"text": "the mat", "finish_reason": "stop", "logprobs": lists}]}).encode()
    ours, theirs = written_of(body), written_of(grey.body_of("the mat", content))
    assert [(w.token.data, w.token.logp) for w in ours] == [(w.token.data, w.token.logp) for w in theirs]
    readable = [[(t.data, t.logp) for t in w.top if t.data is not None] for w in theirs]
    assert [[(t.data, t.logp) for t in w.top if t.data in dict(r)] for w, r in zip(ours, readable, strict=True)] == [
        [pair for pair in r if "\ufffd" not in pair[0].decode("utf-8", "replace")] for r in readable
    ]
