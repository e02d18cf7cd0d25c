"""A model writes rows together, and each says what it would have said alone."""

import numpy as np
import pytest
import torch

from tests import tiny
from tutelage import randomness
from tutelage.generation import decode
from tutelage.generation.decode import Decoder, Wish, Written, picks

V = 48
PROMPTS = ((5, 6, 7), (9,), (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), (30, 31, 32, 33, 34), (40, 41))
KINDS = {"llama": tiny.llama, "gemma2": tiny.gemma2, "gpt2": tiny.gpt2}


def wishes(*, temperature: float, most: int = 12, seed: int = 0) -> list[Wish]:
    return [
        Wish(ids=ids, most=most, temperature=temperature, draw=randomness.generator(seed, "test", n))
        for n, ids in enumerate(PROMPTS)
    ]


def decoder(kind: str = "llama", *, ends: frozenset[int] = frozenset(), dtype=torch.float32) -> Decoder:
    return Decoder(KINDS[kind](vocabulary=V, dtype=dtype), n_vocabulary=V, ends=ends)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_says_the_same_alone_and_beside_others(kind, temperature):
    for dtype in (torch.float32, torch.float64) if kind == "llama" else (torch.float32,):
        made = decoder(kind, dtype=dtype)
        together = made.write(wishes(temperature=temperature))
        alone = [made.write([wish])[0] for wish in wishes(temperature=temperature)]
        assert together == alone
        assert made.write(wishes(temperature=temperature)[::-1]) == together[::-1]
    assert len({written.ids for written in together}) >= len(PROMPTS) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_greedily_it_says_what_transformers_says(kind):
    made = decoder(kind)
    for wish, written in zip(wishes(temperature=0.0), made.write(wishes(temperature=0.0)), strict=True):
        ids = torch.tensor([wish.ids])
        found = made._model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert tuple(found[0, len(wish.ids) :].tolist()) == written.ids and not written.ended


def test_a_row_ends_at_an_end_and_the_others_go_on():
    free = decoder().write(wishes(temperature=0.0))
    end = free[0].ids[3]
    made = decoder(ends=frozenset({end})).write(wishes(temperature=0.0))
    for written, before in zip(made, free, strict=True):
        place = before.ids.index(end) if end in before.ids else None
        assert written == Written(ids=before.ids[:place], ended=place is not None)
    assert {written.ended for written in made} == {True, False}


def test_pieces_of_the_logits_change_nothing(monkeypatch):
    whole = decoder().write(wishes(temperature=1.0))
    monkeypatch.setattr(decode, "LOGIT_BYTES", 8 * V * 2)
    assert decoder().write(wishes(temperature=1.0)) == whole


def test_draws_follow_the_distribution_at_its_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -float("inf")])
    draw, n = np.random.default_rng(0), 10_000
    for temperature in (0.7, 1.0, 2.0):
        tokens = picks(logits.expand(n, -1), temperatures=[temperature] * n, draws=[draw] * n)
        found = np.bincount(tokens, minlength=5) / n
        expected = torch.softmax(logits.double() / temperature, -1).numpy()
        assert np.abs(found - expected).max() < 4 * 0.5 / n**0.5 and found[4] == 0


def test_a_token_without_weight_is_never_drawn_and_rows_may_have_their_own_temperature():
    logits = torch.full((4, 1500), -float("inf"))
    logits[:, 700:703] = torch.tensor([1.0, 0.0, 2.0])
    draws = [np.random.default_rng(n) for n in range(4)]
    found = [picks(logits, temperatures=[0.0, 1.0, 5.0, 1.0], draws=draws) for _ in range(40)]
    assert {tokens[0] for tokens in found} == {702} and {token for row in found for token in row} == {700, 701, 702}


def test_noise_in_the_last_bits_hardly_ever_turns_a_draw():
    """3e-5 in the logits is what padding changes in float32 for a model with 49,152 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(200, 20_000, generator=generator)
    other = logits + 3e-5 * torch.randn(logits.shape, generator=generator)
    ours, theirs = (
        picks(x, temperatures=[1.0] * 200, draws=[np.random.default_rng(n) for n in range(200)])
        for x in (logits, other)
    )
    assert ours == theirs and len(set(ours)) > 100


def test_padding_is_felt_where_it_is_not_masked():
    assert not decoder().feels_padding((3, 4, 5))
    deaf = decoder()
    forward = deaf._forward
    deaf._forward = lambda ids, mask, positions, cache: forward(ids, torch.ones_like(mask), positions, cache)
    assert deaf.feels_padding((3, 4, 5))
