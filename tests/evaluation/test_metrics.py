"""The contract of every file in evaluation/metrics/."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.evaluation.conftest import N_VOCABULARY, batches_of, rows_written_by
from tutelage import plugins
from tutelage.errors import IntegrityError
from tutelage.evaluation.cells import TokenFacts
from tutelage.evaluation.score import score_models
from tutelage.types import Estimate

METRICS = plugins.names("evaluation/metrics")
pytestmark = pytest.mark.parametrize("name", METRICS)


@pytest.fixture(scope="module")
def scores(teacher, student):
    """Of rows that the student wrote, so that a temperature near 1 suits it."""
    batches = batches_of(rows_written_by(student, 12), size=4)
    tokens = TokenFacts(n_bytes_V=np.arange(N_VOCABULARY) % 4)
    return score_models(
        {"teacher": teacher, "student": student}, batches, teacher="teacher", n_vocabulary=N_VOCABULARY, tokens=tokens
    )["student"]


def test_a_metric_is_labelled_and_knows_its_direction_and_unit(name):
    module = plugins.load("evaluation/metrics", name)
    assert ":" in module.__doc__.splitlines()[0]
    assert module.HIGHER_IS_BETTER in (True, False, None)
    assert isinstance(module.NEEDS_TEACHER, bool)
    assert module.UNIT in {"nats", "share", "perplexity", "score", "bits", "correlation", "temperature"}


def test_a_metric_gives_a_finite_estimate_that_counts_sequences(name, scores):
    module = plugins.load("evaluation/metrics", name)
    found = module.compute(scores)
    assert isinstance(found, Estimate)
    assert math.isfinite(found.value)
    assert 0 < found.stderr < abs(found.value) + 1
    assert (found.n, found.unit) == (12, module.UNIT)


def test_the_influences_are_those_of_the_estimate_and_do_not_depend_on_order(name, scores):
    module = plugins.load("evaluation/metrics", name)
    forward, backward = module.measure(scores), module.measure(scores[::-1])
    assert forward.value == pytest.approx(backward.value, rel=1e-14)
    assert forward.influence_n == pytest.approx(backward.influence_n[::-1], rel=1e-12, abs=1e-14)
    assert forward.influence_n.sum() == pytest.approx(0.0, abs=1e-12 * max(1.0, abs(forward.value)))


def test_an_unscored_sequence_is_left_out(name, scores):
    module = plugins.load("evaluation/metrics", name)
    broken = [replace(scores[0], n_unscored=1, nll_nats=1e9), *scores[1:]]
    assert module.compute(broken) == module.compute(scores[1:])


@pytest.mark.parametrize("left", ["none", "unscored"])
def test_nothing_to_score_is_an_error_that_names_the_metric(name, scores, left):
    module = plugins.load("evaluation/metrics", name)
    with pytest.raises(IntegrityError, match=rf"NO_SCORED_TOKENS\]: {name}: 0 scored"):
        module.compute([replace(s, n_unscored=1) for s in scores] if left == "unscored" else [])
