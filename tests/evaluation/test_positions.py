"""Numbers of a position, compiled and plain, against float64 by the definitions.

Shape legend: C positions, V vocabulary.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.evaluation import positions
from tutelage.evaluation.positions import AGAINST, COLUMNS, INVERSE_TEMPERATURES, OWN, Product, numbers
from tutelage.losses import fused

N_ROWS, N_COLUMNS = 6, 4099  # over two blocks of the compiled loop, and a ragged run
DTYPES = [torch.bfloat16, torch.float32, torch.float64]
# float32 sums of 4,099 exponentials over float64 block sums, and a float32 softmax on the plain way.
TOLERANCE = {torch.bfloat16: 4e-6, torch.float32: 4e-6, torch.float64: 1e-11}


def rows(dtype: torch.dtype, *, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    model_CV, noise_CV = torch.randn(2, N_ROWS, N_COLUMNS, generator=draw, dtype=torch.float64) * spread
    ids_C = torch.randint(0, N_COLUMNS, (N_ROWS,), generator=draw)
    return model_CV.to(dtype), (model_CV + 0.4 * noise_CV).to(dtype), ids_C


def spearman(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of mid-ranks, by the definition."""

    def ranks(values: list[float]) -> np.ndarray:
        return np.array([sum(x > v for x in values) + (values.count(v) - 1) / 2 for v in values])

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def by_definition(model_V: list[float], teacher_V: list[float], true: int) -> dict[str, float]:
    """One position at a time in plain Python."""

    def softmax(logits: list[float], b: float = 1.0) -> list[float]:
        high = max(logits)
        weights = [math.exp(b * (x - high)) for x in logits]
        total = math.fsum(weights)
        return [w / total for w in weights]

    def order(logits: list[float]) -> list[int]:
        return sorted(range(len(logits)), key=lambda i: (-logits[i], i))

    q, p = softmax(model_V), softmax(teacher_V)
    first, taught = order(model_V), order(teacher_V)
    runners = taught[1:11]
    found = {
        "nll_nats": -math.log(q[true]),
        "confidence": max(q),
        "correct": float(first[0] == true),
        "brier": math.fsum((x - (i == true)) ** 2 for i, x in enumerate(q)),
        "kl_nats": math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "reverse_kl_nats": math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True)),
        "acceptance": math.fsum(map(min, p, q)),
        "agree": float(first[0] == taught[0]),
        "top5_overlap": len({*first[:5]} & {*taught[:5]}) / 5,
        "runner_up_order": spearman([model_V[i] for i in runners], [teacher_V[i] for i in runners]),
    }
    for k, b in enumerate(INVERSE_TEMPERATURES):
        heated = softmax(model_V, b)
        found[f"heated_nats {k}"] = -math.log(heated[true])
        found[f"heated_slopes {k}"] = math.fsum(w * x for w, x in zip(heated, model_V, strict=True)) - model_V[true]
    return found


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(fused, "_STORED_AS", {})  # no dtype is compiled: what runs on an accelerator
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_a_position_is_that_of_its_definition(dtype):
    model_CV, teacher_CV, ids_C = rows(dtype)
    found = numbers(Product(model_CV, 0.75), Product(teacher_CV), ids_C)
    assert found.keys() == {*OWN, *AGAINST}
    for c in range(N_ROWS):
        scaled = (model_CV[c].double() * 0.75).tolist()
        for name, value in by_definition(scaled, teacher_CV[c].double().tolist(), int(ids_C[c])).items():
            column, _, k = name.partition(" ")
            mine = found[column][c, int(k)] if k else found[column][c]
            assert mine == pytest.approx(value, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_is_exactly_its_teacher(dtype):
    model_CV, _, ids_C = rows(dtype)
    found = numbers(Product(model_CV), Product(model_CV.clone()), ids_C)
    for name in ("kl_nats", "reverse_kl_nats"):
        assert (found[name] == 0.0).all()
    for name in ("acceptance", "agree", "top5_overlap", "runner_up_order"):
        assert (found[name] == 1.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_a_uniform_model_is_exactly_log_v_at_any_temperature(dtype, level):
    found = numbers(Product(torch.full((2, N_COLUMNS), level, dtype=dtype)), None, torch.tensor([0, N_COLUMNS - 1]))
    tolerance = 5e-7 if dtype != torch.float64 and positions.fused._STORED_AS == {} else 1e-15  # float32 log_softmax
    assert found["nll_nats"] == pytest.approx(math.log(N_COLUMNS), rel=tolerance)
    assert found["heated_nats"] == pytest.approx(np.full((2, 7), math.log(N_COLUMNS)), rel=tolerance)
    assert (np.abs(found["heated_slopes"]) < 1e-15).all()


def test_both_orders_of_a_pair_swap_the_divergences_and_nothing_else():
    model_CV, teacher_CV, ids_C = (x[:1] for x in rows(torch.float32))
    one = numbers(Product(model_CV), Product(teacher_CV), ids_C)
    other = numbers(Product(teacher_CV), Product(model_CV), ids_C)
    assert one["kl_nats"] == pytest.approx(other["reverse_kl_nats"], rel=1e-5)
    for name in ("acceptance", "agree", "top5_overlap"):
        assert one[name] == pytest.approx(other[name], rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_are_ordered_by_their_id_on_every_way(dtype):
    model_CV = torch.zeros(1, 600, dtype=dtype)
    model_CV[0, [7, 300, 301, 599]] = 2.0
    teacher_CV = torch.zeros(1, 600, dtype=dtype)
    teacher_CV[0, [7, 0, 1, 2]] = 2.0
    teacher_CV[0, 3] = -0.0
    found = numbers(Product(model_CV), Product(teacher_CV), torch.tensor([7]))
    assert found["correct"][0] == 1.0  # of four equal ones 7 is first; the teacher's first is 0
    assert found["agree"][0] == 0.0
    assert found["top5_overlap"][0] == pytest.approx(2 / 5)  # 7, 300, 301, 599, 0 and 0, 1, 2, 7, 3


def test_an_order_that_only_one_of_both_has_counts_nothing():
    ordered_CV, flat_CV = torch.arange(50.0)[None], torch.zeros(1, 50)
    ids_C = torch.tensor([3])
    assert numbers(Product(flat_CV), Product(ordered_CV), ids_C)["runner_up_order"][0] == 0.0
    assert numbers(Product(-ordered_CV), Product(ordered_CV), ids_C)["runner_up_order"][0] == -1.0


@pytest.mark.parametrize("n_columns", [2, 7])
def test_a_vocabulary_smaller_than_the_compared_tokens_works(n_columns):
    model_CV = torch.arange(float(n_columns))[None]
    found = numbers(Product(model_CV), Product(model_CV.clone()), torch.tensor([1]))
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["top5_overlap"][0] == found["acceptance"][0] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_that_both_rule_out_adds_nothing_and_one_that_only_the_model_rules_out_is_infinite(dtype):
    model_CV, teacher_CV, ids_C = rows(dtype)
    ids_C[:2] = 0
    model_CV[0, 5] = teacher_CV[0, 5] = -math.inf
    model_CV[1, 6] = -math.inf
    found = numbers(Product(model_CV), Product(teacher_CV), ids_C)
    kept = torch.arange(N_COLUMNS) != 5
    without = numbers(Product(model_CV[:1, kept]), Product(teacher_CV[:1, kept]), ids_C[:1])
    for name in ("nll_nats", "kl_nats", "reverse_kl_nats", "acceptance", "brier", "heated_nats", "heated_slopes"):
        assert found[name][0] == pytest.approx(without[name][0], rel=1e-5, abs=1e-6), name
    assert found["kl_nats"][1] == math.inf
    assert math.isfinite(found["reverse_kl_nats"][1])
    assert np.isfinite(found["kl_nats"][2:]).all()


def test_nan_makes_numbers_that_are_not_finite_and_harms_no_other_row():
    model_CV, teacher_CV, ids_C = rows(torch.float32)
    sound = numbers(Product(model_CV), Product(teacher_CV), ids_C)
    model_CV[2, 9], model_CV[3, 9], teacher_CV[4, 9] = math.nan, -math.nan, math.nan
    found = numbers(Product(model_CV), Product(teacher_CV), ids_C)
    for row in (2, 3):
        assert not math.isfinite(found["nll_nats"][row])
    assert not math.isfinite(found["kl_nats"][4])
    for row in (0, 1, 5):
        assert found["kl_nats"][row] == sound["kl_nats"][row]


def test_far_apart_logits_stay_right():
    model_CV, teacher_CV, ids_C = rows(torch.float64, spread=25.0)
    expected = numbers(Product(model_CV), Product(teacher_CV), ids_C)
    found = numbers(Product(model_CV.float()), Product(teacher_CV.float()), ids_C)
    for name in ("nll_nats", "kl_nats", "reverse_kl_nats", "heated_nats"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def test_what_the_compiled_loop_writes_is_what_the_names_say(way):
    """A column in the wrong place would be another measure's number."""
    assert [*COLUMNS] == [*OWN, *AGAINST]
    assert [place.start for place in COLUMNS.values()][1:] == [place.stop for place in COLUMNS.values()][:-1]


def test_a_measure_that_is_not_compiled_is_worked_out_plainly(monkeypatch):
    def entropy_nats(pair: positions.Pair) -> Tensor:
        return -(pair.model.p_CV * pair.model.logp_CV).sum(-1)

    monkeypatch.setattr(positions, "OWN", {**OWN, "entropy_nats": entropy_nats})
    model_CV, teacher_CV, ids_C = rows(torch.float32)
    found = numbers(Product(model_CV), Product(teacher_CV), ids_C)
    logp_CV = torch.log_softmax(model_CV.double(), -1)
    assert found["entropy_nats"] == pytest.approx(-(logp_CV.exp() * logp_CV).sum(-1).numpy(), rel=1e-5)
