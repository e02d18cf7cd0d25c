"""O6: models that learn together.  Where nothing flows between them they are independent runs, bit for bit."""

import copy
import itertools

import pytest
import torch

from tests import tiny
from tutelage.losses.schedules import Schedule, constant
from tutelage.losses.terms import Term
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.training.member import Member
from tutelage.training.optim import OptimizerSettings
from tutelage.training.precision import ComputePath
from tutelage.training.trainer import Trainer, one_model

V, STEPS = 48, 4
HARD = Term(kind="ground_truth", weight=constant(0.5))
DTYPES = [torch.float64, torch.float32, torch.bfloat16]  # plain functions, compiled loop, compiled on separate masters


def soft(source: str = "teacher", *, weight: float = 0.5, divergence: str = "forward_kl", **more) -> Term:
    return Term(kind="divergence", divergence=divergence, weight=constant(weight), source=source, **more)


def settings(rate: float = 1e-2, n_steps: int = STEPS) -> OptimizerSettings:
    return OptimizerSettings(
        schedule=Schedule(kind="cosine", start=rate, warmup=0.5), n_steps=n_steps, weight_decay=0.1
    )


def make(name: str, dtype: torch.dtype, *, dropout: float = 0.3):
    wide = torch.promote_types(dtype, torch.float32)
    seed = {"teacher": 1, "small": 2, "tiny": 3, "late": 4}.get(name, 5)
    if name == "teacher":
        return tiny.gpt2(seed=seed, dropout=dropout, layers=2).to(wide)
    return tiny.llama(seed=seed, dropout=dropout, layers=1, hidden=8 + 8 * (seed % 2)).to(wide)


def data(step: int):
    return [tiny.batch(seed=step), tiny.batch(seed=100 + step, rows=1, masked=0.6)]


def shared(dtype: torch.dtype) -> dict:
    return {
        "microbatches": data, "compute": ComputePath(device="cpu", weight_dtype=dtype, threads=1), "n_vocabulary": V,
        "seed": 3, "chunk_positions": 7,
    }  # fmt: skip


def member(name: str, *terms: Term, dtype=torch.float64, rate: float = 1e-2, model=None, **more) -> Member:
    n_steps = more.pop("n_steps", STEPS)
    model = make(name, dtype) if model is None else model
    return Member(name=name, model=model, terms=terms, optimizer=settings(rate, n_steps), **more)


def together(*members: Member, dtype=torch.float64, teacher=None) -> Trainer:
    return Trainer(members, teacher=teacher, **shared(dtype))


def trained(trainer: Trainer) -> dict[str, dict]:
    """Losses of every step and weights at the end, by model."""
    losses = [stats.losses for stats in trainer.steps()]
    weights = {name: {k: w.clone() for k, w in peer.masters.state().items()} for name, peer in trainer.peers.items()}
    return {name: {"weights": weights[name], "losses": [_of(name, row) for row in losses]} for name in weights}


def _of(name: str, row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith(f"{name}/")}


def assert_bitwise(ours: dict, theirs: dict) -> None:
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, weight in theirs["weights"].items():
        assert torch.equal(ours["weights"][name], weight), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_soft_weight_0_each_model_is_its_own_run_bit_for_bit_and_the_soft_term_is_still_measured(dtype):
    family = trained(
        together(
            member("small", soft(weight=0.0), HARD, dtype=dtype),
            member("teacher", HARD, dtype=dtype),
            member("tiny", HARD, soft(weight=0.0), dtype=dtype),
            dtype=dtype,
        )
    )
    for name in family:
        alone = trained(one_model(make(name, dtype), terms=[HARD], optimizer=settings(), teacher=None, name=name,
                                  **shared(dtype)))  # fmt: skip
        assert_bitwise(family[name], alone[name])
        hard = [row[f"{name}/cross_entropy"] for row in family[name]["losses"]]
        assert hard == [row[f"{name}/cross_entropy"] for row in alone[name]["losses"]]
    assert all(row["small/forward_kl"] > 0.01 for row in family["small"]["losses"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_the_models_changes_nothing(dtype):
    def run(names) -> dict:
        terms = {"teacher": (HARD,), "small": (soft(), HARD), "tiny": (soft("small"), soft(), HARD)}
        return trained(together(*(member(n, *terms[n], dtype=dtype) for n in names), dtype=dtype))

    first, *others = (run(names) for names in itertools.permutations(("teacher", "small", "tiny")))
    for other in others:
        for name in first:
            assert_bitwise(other[name], first[name])
            assert other[name]["losses"] == first[name]["losses"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_gradient_reaches_the_teacher_from_a_student(dtype):
    both = trained(
        together(member("small", soft(weight=5.0), dtype=dtype), member("teacher", HARD, dtype=dtype), dtype=dtype)
    )
    alone = trained(together(member("teacher", HARD, dtype=dtype), dtype=dtype))
    assert_bitwise(both["teacher"], alone["teacher"])
    assert both["teacher"]["losses"] == alone["teacher"]["losses"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_teacher_with_learning_rate_0_is_ordinary_live_distillation(dtype):
    still = make("teacher", dtype, dropout=0.0)
    terms = (soft(weight=0.7), HARD)
    co = trained(
        together(
            member("teacher", HARD, dtype=dtype, rate=0.0, model=copy.deepcopy(still)),
            member("small", *terms, dtype=dtype),
            dtype=dtype,
        )
    )
    live = LiveTeacher(still.to(dtype), n_vocabulary=V)
    ordinary = trained(together(member("small", *terms, dtype=dtype), teacher=live, dtype=dtype))
    assert_bitwise(co["small"], ordinary["small"])
    assert co["small"]["losses"] == ordinary["small"]["losses"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_equals_that_teach_each_other_stay_identical(dtype):
    start = make("small", dtype, dropout=0.0)
    names = ("a", "b", "c")
    members = [
        member(n, HARD, *(soft(other) for other in names if other != n), dtype=dtype, model=copy.deepcopy(start))
        for n in names
    ]
    equals = trained(together(*members, dtype=dtype))
    assert_bitwise(equals["b"], equals["a"])
    assert_bitwise(equals["c"], equals["a"])
    assert {row["a/forward_kl.b"] for row in equals["a"]["losses"]} == {0.0}
    moved = max((w - s).abs().max() for w, s in zip(equals["a"]["weights"].values(), start.parameters(), strict=True))
    assert moved > 1e-3


def test_a_family_on_a_frozen_teacher_is_each_students_own_run():
    def live() -> LiveTeacher:
        return LiveTeacher(make("teacher", torch.float64), n_vocabulary=V)

    family = trained(
        together(member("small", soft(), HARD), member("tiny", soft(divergence="reverse_kl")), teacher=live())
    )
    for name, terms in (("small", (soft(), HARD)), ("tiny", (soft(divergence="reverse_kl"),))):
        alone = trained(together(member(name, *terms), teacher=live()))
        assert_bitwise(family[name], alone[name])
        assert family[name]["losses"] == alone[name]["losses"]


# --- against autograd on whole logits ---
def naive_gradients(models: dict, terms: dict[str, tuple[Term, ...]], batch) -> dict[str, dict[str, torch.Tensor]]:
    """Every model's gradient from whole logits in float64, with the other models detached."""
    from tutelage.losses import divergences

    view, gradients = batch.view, {}
    logits = {
        name: model.train(False)(input_ids=view.ids_BT).logits.flatten(0, 1)[view.index_N]
        for name, model in models.items()
    }
    for name, model in models.items():
        total = torch.zeros((), dtype=torch.float64)
        logp_NV = torch.log_softmax(logits[name], -1)
        for term in terms[name]:
            if term.kind == "ground_truth":
                value_N = -logp_NV.gather(1, view.next_ids_N[:, None])[:, 0]
            else:
                teacher_NV = torch.log_softmax(logits[term.source].detach(), -1)
                value_N = divergences.function(term.divergence)(teacher_NV, logp_NV, **term.parameters)
                if term.trust == "per_token":
                    truth = view.next_ids_N[:, None]
                    value_N = value_N * (teacher_NV.gather(1, truth) > logp_NV.detach().gather(1, truth))[:, 0]
            total = total + term.weight.start * value_N.mean()
        model.zero_grad()
        total.backward(retain_graph=True)
        gradients[name] = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return gradients


GRAPHS = {
    "a teacher and two students": {
        "teacher": (HARD,), "small": (soft(), HARD), "tiny": (soft(divergence="reverse_kl"),),
    },
    "equals": {"small": (HARD, soft("tiny")), "tiny": (HARD, soft("small", divergence="total_variation"))},
    "three in a circle and two sources": {
        "small": (soft("tiny"), HARD), "tiny": (soft("late", weight=0.3),),
        "late": (soft("small"), soft("tiny", weight=2.0, divergence="reverse_kl"), HARD),
    },
    "trust by the token": {"teacher": (HARD,), "small": (soft(trust="per_token", weight=2.0), HARD)},
    "trust by the token alone": {"teacher": (HARD,), "small": (soft(trust="per_token"),)},
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_joint_loss_has_the_gradients_of_autograd_on_whole_logits(graph):
    terms, batch = GRAPHS[graph], tiny.batch(seed=8, rows=3)
    trainer = together(*(member(name, *of, model=make(name, torch.float64, dropout=0.0)) for name, of in terms.items()))
    models = {name: copy.deepcopy(trainer.family.model(name)) for name in terms}
    expected = naive_gradients(models, terms, batch)
    scales = trainer._scales(batch.n_trained, trainer.peers.values())
    trainer.family(batch, {}, scales).total.backward()
    for name in terms:
        found = {key: p.grad for key, p in trainer.family.model(name).named_parameters()}
        for key, gradient in expected[name].items():
            assert (found[key] - gradient).abs().max() < 1e-12, (name, key)


def test_the_share_of_trusted_tokens_is_measured():
    trainer = together(member("teacher", HARD), member("small", soft(trust="per_token"), HARD))
    shares = [stats.losses["small/forward_kl.trusted"] for stats in trainer.steps()]
    assert all(0 < share < 1 for share in shares)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_an_ensemble_teaches_the_average_of_its_probabilities(divergence):
    from tutelage.losses import divergences

    batch, names = tiny.batch(seed=8, rows=3), ("teacher", "tiny")
    members = [LiveTeacher(make(name, torch.float64, dropout=0.0), n_vocabulary=V) for name in names]
    student = make("small", torch.float64, dropout=0.0)
    view, plain = batch.view, copy.deepcopy(student)

    def probabilities(model):
        return torch.softmax(model(input_ids=view.ids_BT).logits.flatten(0, 1)[view.index_N], -1)

    average_NV = (3 * probabilities(members[0].model) + probabilities(members[1].model)) / 4
    temperature = 2.0
    soft_NV = torch.log_softmax(average_NV.detach().log() / temperature, -1)
    logits_NV = plain(input_ids=view.ids_BT).logits.flatten(0, 1)[view.index_N]
    value = divergences.function(divergence)(soft_NV, torch.log_softmax(logits_NV / temperature, -1)).mean()
    (0.5 * temperature**2 * value).backward()

    term = soft(divergence=divergence, temperature=constant(temperature))
    ensemble = EnsembleTeacher(members, weights=[3.0, 1.0])
    trainer = together(member("small", term, model=student), teacher=ensemble)
    scales = trainer._scales(batch.n_trained, trainer.peers.values())
    trainer.family(batch, trainer._targets(batch), scales).total.backward()
    for (key, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-12, key


# --- in time ---
def test_a_teacher_that_freezes_teaches_on_as_it_is():
    frozen = together(member("teacher", HARD, n_steps=2), member("small", soft(), HARD))
    states = []
    for stats in frozen.steps():
        states.append({k: w.clone() for k, w in frozen.peers["teacher"].masters.state().items()})
        assert ("teacher" in stats.totals) == (stats.step <= 2)
        assert "small/forward_kl" in stats.losses
    assert not torch.equal(states[0]["transformer.wte.weight"], states[1]["transformer.wte.weight"])
    assert all(torch.equal(states[1][key], states[3][key]) for key in states[1])


def test_a_student_that_starts_late_stays_as_it_is_until_then_and_has_its_own_schedule():
    late = member("late", soft(), HARD, n_steps=2, first_step=2)
    start = {key: p.detach().clone() for key, p in late.model.named_parameters()}
    trainer = together(member("teacher", HARD), late)
    for stats in trainer.steps():
        moved = any(not torch.equal(start[k], w) for k, w in trainer.peers["late"].masters.state().items())
        assert moved == (stats.step > 2)
        assert ("late" in stats.totals) == (stats.step > 2)
    assert stats.learning_rates["late"] == pytest.approx(settings(n_steps=2).schedule.value(1, n_steps=3))


def test_a_late_student_is_a_run_of_its_own_over_the_later_data():
    start = make("late", torch.float64, dropout=0.0)
    late = member("late", HARD, n_steps=2, first_step=2, model=copy.deepcopy(start))
    family = trained(together(member("teacher", HARD), late))
    options = shared(torch.float64) | {"microbatches": lambda step: data(step + 2)}
    alone = one_model(start, terms=[HARD], optimizer=settings(n_steps=2), teacher=None, name="late", **options)
    assert_bitwise(family["late"], trained(alone)["late"])


def test_trust_by_progress_begins_at_0_and_follows_the_teachers_running_loss():
    def gap(trust: str, running: dict[str, float]) -> float:
        trainer = together(member("teacher", HARD), member("small", soft(trust=trust)))
        trainer.running |= running
        return trainer._scales(1, [trainer.peers["small"]])["small"]["forward_kl"].factor

    nothing = float(torch.log(torch.tensor(48.0, dtype=torch.float64)))
    assert gap("progress", {}) == 0.0
    assert gap("progress", {"teacher": nothing / 4}) == pytest.approx(0.5 * 0.75)
    assert gap("progress", {"teacher": 2 * nothing}) == 0.0
    assert gap("always", {"teacher": nothing / 4}) == 0.5
    trainer = together(member("teacher", HARD), member("small", soft(trust="progress"), HARD))
    losses = [stats.losses["teacher/cross_entropy"] for stats in trainer.steps()]
    expected = losses[0]
    for loss in losses[1:]:
        expected = 0.95 * expected + 0.05 * loss
    assert trainer.running["teacher"] == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_all_models_resume_bitwise_from_every_step(dtype):
    def fresh() -> Trainer:
        return together(
            member("teacher", HARD, dtype=dtype, n_steps=3),
            member("small", soft(trust="progress"), HARD, dtype=dtype),
            member("late", soft("small"), dtype=dtype, n_steps=2, first_step=2),
            dtype=dtype,
        )

    whole = fresh()
    losses = [stats.losses for stats in whole.steps()]
    for cut in range(STEPS + 1):
        half, seen = fresh(), []
        for _ in range(cut):
            seen.append(next(half.steps()).losses)
        again = fresh()
        for name, peer in again.peers.items():
            peer.masters.load(copy.deepcopy(half.peers[name].masters.state()))
            peer.optimizer.load(copy.deepcopy(half.peers[name].optimizer.state()))
        again.step, again.running = half.step, dict(half.running)
        seen += [stats.losses for stats in again.steps()]
        assert seen == losses
        for name, peer in again.peers.items():
            for key, weight in whole.peers[name].masters.state().items():
                assert torch.equal(peer.masters.state()[key], weight), (name, key)
