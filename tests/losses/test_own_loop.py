"""The losses as somebody else's training loop uses them: what does not fit is said, never broadcast or left out."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tutelage import losses
from tutelage.types import DenseTargets, Head

N, D, V = 6, 8, 20


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(n_vocabulary: int = V) -> Head:
    return Head(weight_VD=random(V, D, seed=1), bias_V=None, n_vocabulary=n_vocabulary)


def targets(n: int = N, n_vocabulary: int = V) -> DenseTargets:
    return DenseTargets(hidden_ND=random(n, D, seed=2), head=head(n_vocabulary))


def term(divergence: str) -> losses.Term:
    return losses.Term(kind="divergence", divergence=divergence)


ARGMAX = losses.Term(kind="teacher_argmax")
WRONG = {
    "no teacher, fast path": ({"terms": [term("forward_kl")], "targets": None}, "forward_kl asks"),
    "no teacher, plain path": ({"terms": [term("reverse_kl")], "targets": None}, "reverse_kl asks"),
    "no teacher, its argmax": ({"terms": [ARGMAX], "targets": None}, "cross_entropy_argmax asks"),
    "one row of the teacher": ({"terms": [term("reverse_kl")], "targets": targets(1)}, "the same N"),
    "more rows of the teacher": ({"terms": [term("reverse_kl")], "targets": targets(N + 3)}, "the same N"),
    "two vocabularies": ({"terms": [term("reverse_kl")], "targets": targets(N, V - 1)}, "19 and 20"),
    "one next token": ({"next_ids_N": torch.zeros(1, dtype=torch.int64)}, "trained positions alone"),
    "rows and positions": ({"hidden_ND": random(2, 3, D, seed=3)}, "trained positions alone"),
    "a term twice": ({"terms": [term("forward_kl")] * 2}, "no name twice"),
    "no term": ({"terms": []}, "at least one"),
    "no scale": ({"scales": {}}, "forward_kl missing"),
    "a negative chunk": ({"chunk_positions": -1}, "at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_refused(name):
    changes, expected = WRONG[name]
    names = [*losses.DIVERGENCES, "cross_entropy_argmax"]
    given = {
        "hidden_ND": random(N, D, seed=4), "targets": targets(), "terms": [term("forward_kl")],
        "scales": {each: losses.Scale(factor=1.0) for each in names}, "next_ids_N": torch.arange(N), **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=expected):
        losses.chunked_loss(given.pop("hidden_ND"), student_head=head(), **given)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, math.nan])
@pytest.mark.parametrize("name", [name for name, parameters in losses.DIVERGENCES.items() if parameters])
def test_a_share_outside_of_0_to_1_is_refused_with_the_divergence_to_use(name, share):
    logp = torch.log_softmax(random(2, V, seed=5), -1)
    with pytest.raises(ValueError, match=r"expected 0 < .* < 1; at 0 use \w+_kl"):
        getattr(losses, name)(logp, logp, **dict.fromkeys(losses.DIVERGENCES[name], share))


def test_the_code_of_the_page_about_losses_runs():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    blocks = page.split("```python\n")[1:]
    assert len(blocks) == 4
    found: dict[str, object] = {}
    for block in blocks:
        exec(block.split("```")[0], found)
    for name in ("mean_kl", "soft_nats"):
        value = found[name]
        assert isinstance(value, float)
        assert 0 < value < (5 if name == "mean_kl" else 100)
