"""What stored targets cannot serve is refused before any work: from the terms alone, and inside the loss."""

from dataclasses import replace

import pytest

from tests.losses.stored_targets import V, draw, random_entries, run, sampled, soft, teacher, top_k
from tutelage.errors import ConfigError
from tutelage.losses import refuse_unservable
from tutelage.losses.names import DIVERGENCES
from tutelage.losses.schedules import Schedule
from tutelage.losses.terms import Term
from tutelage.types import LogitTargets

TRUTH, ARGMAX = Term(kind="ground_truth"), Term(kind="teacher_argmax")
OTHERS = [soft(name) for name in DIVERGENCES if name != "forward_kl"]
WARMS_UP = replace(soft(), temperature=Schedule(start=1.0, end=1.0, warmup=0.1))
COOLS = replace(soft(), temperature=Schedule(kind="linear", start=2.0, end=1.0))


@pytest.mark.parametrize("term", [*OTHERS, ARGMAX], ids=lambda term: term.name)
def test_a_sample_serves_nothing_but_forward_kl_and_the_truth(term):
    for terms in ([term], [soft(), term, TRUTH], [replace(term, weight=Schedule(start=0.0))]):
        with pytest.raises(ConfigError, match=term.name) as caught:
            refuse_unservable(terms, kind="sample", temperature=1.0)
        assert caught.value.code == "CODEC_CANNOT"
        for what in ("tutelage label", "hidden", "dense", "topk"):
            assert what in caught.value.message
        with pytest.raises(ConfigError, match="CODEC_CANNOT"):
            run(sampled(random_entries()), terms)


@pytest.mark.parametrize("kind", ["sample", "top_k"])
@pytest.mark.parametrize(
    ("term", "asks"),
    [(soft(temperature=2.0), "T=2.0"), (WARMS_UP, "several temperatures"), (COOLS, "several temperatures")],
    ids=["another", "warm-up", "linear"],
)
def test_a_cache_of_one_temperature_refuses_another_and_any_that_changes(kind, term, asks):
    with pytest.raises(ConfigError, match=asks) as caught:
        refuse_unservable([TRUTH, term], kind=kind, temperature=1.0)
    assert caught.value.code == "CACHE_TEMPERATURE"
    for what in ("T=1.0", "tutelage label", "hidden", "dense", "forward_kl"):
        assert what in caught.value.message


def test_the_loss_refuses_the_temperature_of_a_step():
    for targets in (sampled(random_entries(), temperature=1.5), top_k(draw(13, V, seed=1), 3, temperature=1.5)):
        with pytest.raises(ConfigError, match="T=1.5"):
            run(targets, [soft(temperature=2.0)])


def test_what_a_cache_can_serve_is_not_refused():
    everything = [soft(), *OTHERS, ARGMAX, TRUTH]
    refuse_unservable([soft(), TRUTH], kind="sample", temperature=1.0)
    stays = replace(COOLS, temperature=Schedule(kind="cosine", start=2.0, end=2.0))
    refuse_unservable([stays], kind="sample", temperature=2.0)
    refuse_unservable([TRUTH], kind="sample", temperature=3.0)
    refuse_unservable(everything, kind="top_k", temperature=1.0)
    refuse_unservable([ARGMAX, TRUTH], kind="top_k", temperature=3.0)
    for kind in ("hidden", "logits"):
        refuse_unservable([*everything, COOLS, WARMS_UP], kind=kind, temperature=3.0)


GOOD = sampled(random_entries())
FULL = LogitTargets(logits_NV=draw(13, V, seed=1))
MERGED = top_k(FULL.logits_NV, 3)
WRONG = {
    "a sample of other positions": (sampled(random_entries(12)), "12 positions of the teacher, 13"),
    "offsets that leave entries out": (replace(GOOD, offsets=GOOD.offsets.clamp(max=20)), "to 20, expected"),
    "offsets that do not begin": (replace(GOOD, offsets=GOOD.offsets.clamp(min=1)), "offsets from 1"),
    "offsets that fall": (replace(GOOD, offsets=GOOD.offsets[[0, 2, 1, *range(3, 14)]]), "expected to rise"),
    "a weight too few": (replace(GOOD, weights_M=GOOD.weights_M[1:]), "weights, expected"),
    "logits of other positions": (LogitTargets(logits_NV=FULL.logits_NV[:1]), "1 positions of the teacher"),
    "logits of another vocabulary": (LogitTargets(logits_NV=FULL.logits_NV[:, 1:]), "30 and 31"),
    "a top-k of other positions": (top_k(draw(1, V, seed=1), 3), "1 positions of the teacher"),
    "one tail for all": (replace(MERGED, tail_logp_N=MERGED.tail_logp_N[:1]), r"\(13, 3\), as ids"),
    "too few log-probabilities": (replace(MERGED, logp_NK=MERGED.logp_NK[:, :1]), r"\(13, 3\), as ids"),
    "hidden states of rows": (replace(teacher(), hidden_ND=draw(13, 2, 9, seed=1)), "expected \\[N, D\\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_targets_that_do_not_fit_the_student_are_refused(name):
    targets, expected = WRONG[name]
    with pytest.raises(ValueError, match=expected):
        run(targets, [soft()])


@pytest.mark.parametrize("bad", [-1, -100, V])
def test_an_id_outside_the_vocabulary_is_refused_and_never_wraps(bad):
    ids_M, ids_NK = GOOD.ids_M.clone(), MERGED.ids_NK.clone()
    ids_M[7], ids_NK[3, 1] = bad, bad
    for targets in (replace(GOOD, ids_M=ids_M), replace(MERGED, ids_NK=ids_NK)):
        with pytest.raises(IndexError, match="expected 0 to 30"):
            run(targets, [soft()])
