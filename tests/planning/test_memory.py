"""Memory before anything is run: activations counted exactly, the sum by formula, what does not fit."""

import json
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny
from tests.planning.test_plan import FACTS, FORM
from tutelage.cli import main
from tutelage.models.student import shortened
from tutelage.planning import activations
from tutelage.planning.advice import advise
from tutelage.planning.estimate import plan_of
from tutelage.planning.memory import PROGRAM_BYTES, Step, memory_of
from tutelage.planning.work import Work, techniques

STEP = Step(positions=256.0, n_micro=1, chunk=128, number_bytes=4, closed_form=True,
            activations={"student": 5e6, "teacher": 7e6})  # fmt: skip


def really_saved(config, *, rows, length, dtype):
    """Bytes of the different storages that autograd keeps of a pass of a real model."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids, mask = torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, 1, length, length, dtype=torch.bool)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(n for place, n in kept.items() if place not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_keeps_of_a_whole_model(dtype):
    config = tiny.llama(layers=4).config
    counted = activations.saved_by(config, rows=3, length=16, dtype=dtype).of(4, checkpointing=False, kept_a_layer=0.0)
    assert counted == really_saved(shortened(config, 4), rows=3, length=16, dtype=dtype)


def test_what_a_pass_keeps_that_depends_on_its_numbers_is_not_known(capfd):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "hidden_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100}
    config = AutoConfig.for_model("qwen3_moe", num_hidden_layers=2, intermediate_size=64, **experts, **heads)
    assert activations.saved_by(config, rows=1, length=8, dtype=torch.float32) is None
    assert "Traceback" not in capfd.readouterr().err


def test_the_sum_of_a_technique_by_hand():
    """1,000 parameters that learn, 4,000 of a teacher; a vocabulary of 1,000, no head in these sizes."""
    soft = memory_of(techniques()["soft"].work(FACTS), FACTS, STEP)
    product, chunk = 256 * 1000 * 4, 128 * 1000 * 4
    expected = {"program": PROGRAM_BYTES, "weights": 8e3, "moments": 8e3, "gradients": 0.0, "activations": 5e6,
                "teacher": 16e3, "loss": product + chunk}  # fmt: skip
    assert soft.parts == expected and soft.peak == sum(expected.values())
    cached = memory_of(techniques()["cached"].work(FACTS), FACTS, STEP)
    assert cached.parts == {**{k: v for k, v in expected.items() if k != "teacher"}, "loss": product}
    assert cached.first == PROGRAM_BYTES + 16e3 + 2 * chunk
    co = memory_of(techniques()["co"].work(FACTS), FACTS, STEP)
    assert (co.parts["weights"], co.parts["moments"], co.parts["activations"]) == (8 * 5e3, 8 * 5e3, 12e6)


def test_gradients_take_the_room_of_activations_but_for_those_of_earlier_micro_batches():
    """1,000 parameters of 4 bytes; of `tied` 400 are a head that is the embedding too."""

    def gradients(size=FACTS.students["student"], **changed):
        step = Step(**{**{n: getattr(STEP, n) for n in Step.__dataclass_fields__}, **changed})
        facts = replace(FACTS, students={"student": size})
        return memory_of(Work(student_training=1.0), facts, step).parts["gradients"]

    few, tied = {"student": 100.0}, replace(FACTS.students["student"], head=400)
    assert (gradients(), gradients(activations=few), gradients(n_micro=2)) == (0.0, 4e3 - 100.0, 4e3)
    assert (gradients(tied), gradients(tied, n_micro=2)) == (3 * 1600.0, 4e3 + 3 * 1600.0)
    assert gradients(replace(tied, multiplying=600)) == 1600.0
    assert gradients(n_micro=2, number_bytes=2) == 6e3  # a working weight has a gradient of its own


def test_what_lies_where():
    def parts(**changed):
        step = Step(**{**{n: getattr(STEP, n) for n in Step.__dataclass_fields__}, **changed})
        return memory_of(Work(student_training=1.0), FACTS, step).parts

    narrow, away = parts(number_bytes=2), parts(on_host=False)
    assert (narrow["weights"], narrow["moments"], narrow["teacher"]) == (10e3, 8e3, 8e3)
    assert "program" not in away and away["weights"] == 4e3
    size = replace(FACTS.students["student"], rounded=600)
    step = Step(**{**{n: getattr(STEP, n) for n in Step.__dataclass_fields__}, "n_micro": 2})
    of_rounded = memory_of(Work(student_training=1.0), replace(FACTS, students={"student": size}), step).parts
    assert (of_rounded["weights"], of_rounded["gradients"]) == (8e3 + 2400, 4e3 + 2400)
    assert (parts(averaged=True)["average"], parts(closed_form=False)["loss"]) == (4e3, (256 + 6 * 128) * 4e3)


def test_what_does_not_fit_is_not_possible_and_what_fits_is_advised():
    need = {name: memory_of(techniques()[name].work(FACTS), FACTS, STEP).peak for name in ("soft", "cached", "co")}
    plan = plan_of(FACTS, form=FORM, step=STEP, memory_bytes=need["cached"])
    assert "cached" in plan.possible and {"soft", "co"}.isdisjoint(plan.possible)
    (why,) = (e.impossible for e in plan.estimates if e.name == "co")
    assert "of memory at its peak, and the machine has" in why and "training.micro_batch" in why
    assert advise(plan).technique == "cached"
    assert advise(plan_of(FACTS, form=FORM, step=STEP, memory_bytes=1.0)).technique == "none"


def test_the_memory_of_a_described_machine_decides_what_is_possible(capsys):
    numbers = [
        "plan",
        "--tokens",
        "1e9",
        "--vocabulary",
        "32000",
        "--parameters",
        "70e9",
        "--student-parameters",
        "1e9",
    ]
    assert main([*numbers, "--flops", "1e15", "--memory", "80e9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["techniques"]
    assert "needs 158 GB of memory" in found["soft"]["impossible"]  # 2 bytes of 70e9, 18 of 1e9, no activations
    assert main([*numbers, "--flops", "1e15", "--memory", "200e9"]) == 0
    assert "> 158 GB" in capsys.readouterr().out
