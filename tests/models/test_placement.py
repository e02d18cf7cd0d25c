"""Teachers that lie elsewhere: on another device than the student, or on the disk; the answers are the same."""

import contextlib
import gc
import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tutelage
from tests import tiny
from tests.recipe_trees import error_of
from tests.verbs import tiny_runs
from tutelage.cache.manifest import read_manifest
from tutelage.errors import ConfigError
from tutelage.home import home
from tutelage.losses.family import Family
from tutelage.losses.terms import Scale, Term
from tutelage.models import placement
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.models.load import load_model
from tutelage.models.quantized import n_parameters
from tutelage.teachers.live import LiveTeacher
from tutelage.training import teachers
from tutelage.types import Batch, TokenView

DISK = {"": "disk"}
OWN = {"student": {"config": {"num_hidden_layers": 1}}}


# --- another device ---
# torch has fake tensors that compute shapes alone, and refuses to compute with two devices as it does for real ones;
# `meta` is the one device beside the CPU that a machine without a GPU has.
def empty_on(model, device):
    """Fake weights, tied ones once."""
    made = {}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, old in kind.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device=device)
                    made[id(old)] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
                kind[name] = made.get(id(old))
    return model


def live_of(model, *, answers_on):
    """A teacher without a fingerprint: fake weights have no bytes."""
    teacher = LiveTeacher.__new__(LiveTeacher)
    teacher.model, teacher._n_vocabulary = model, 48
    teacher._answers_on, teacher._moved_head, teacher._taps = answers_on, None, ()
    return teacher


class Moves(TorchDispatchMode):
    """What goes from one device to another: (shape, to where, whether the copy is waited for)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if function is torch.ops.aten._to_copy.default and to is not None and to != args[0].device:
            self.seen.append((tuple(args[0].shape), to.type, not kwargs.get("non_blocking", False)))
        return function(*args, **kwargs)


@contextlib.contextmanager
def on_two_devices(*, teacher, student, answers_on):
    """(a loss of the student against the teacher, which lies elsewhere; its weights; the moves), all fake."""
    models = [tiny.llama(seed=seed, dtype=torch.float32) for seed in (0, 1)]
    for model in models:
        model.set_attn_implementation("eager")
    view = tiny.batch().view
    term = Term(kind="divergence", divergence="total_variation")
    with FakeTensorMode() as mode:
        asked, learning = empty_on(models[0], teacher), empty_on(models[1], student)
        fields = {n: getattr(view, n) for n in TokenView.__dataclass_fields__}
        placed = {n: mode.from_tensor(t).to(student) if t is not None else None for n, t in fields.items()}
        batch = Batch(views={"tiny": TokenView(**placed)})
        live = live_of(asked, answers_on=answers_on)
        family = Family({"student": learning}, {"student": (term,)}, n_vocabulary=48, chunk_positions=8)
        scales = {"student": {term.name: Scale(factor=1.0, temperature=1.0)}}
        with Moves() as moves:
            yield lambda: family(batch, {"teacher": live.targets(batch)}, scales).total, learning, moves.seen


@pytest.mark.parametrize(("teacher", "student"), [("meta", "cpu"), ("cpu", "meta")])
def test_a_teacher_on_another_device_sends_hidden_states_alone_and_its_head_once(teacher, student):
    n = tiny.batch().n_trained
    with on_two_devices(teacher=teacher, student=student, answers_on=student) as (loss, learning, moves):
        assert loss().device.type == student
        first = list(moves)
        answers = [shape for shape, to, _ in first if to == student]
        assert sorted(answers) == [(n, 16), (48, 16)]
        assert all(len(shape) < 3 and max(shape) <= n for shape, to, _ in first if to == teacher)  # ids, labels, places
        assert all(waited for _, to, waited in first if to == "cpu")  # the CPU would read what is not there yet
        again = loss()
        assert [shape for shape, to, _ in moves[len(first) :] if to == student] == [(n, 16)]
        if student == "meta":
            again.backward()
            assert {p.grad.device.type for p in learning.parameters()} == {student}


def test_answers_that_stay_with_the_teacher_cannot_be_learned_from_elsewhere():
    with (
        on_two_devices(teacher="cpu", student="meta", answers_on=None) as (loss, _, _),
        pytest.raises(RuntimeError, match="two devices, cpu and meta"),
    ):
        loss()


def test_on_one_device_nothing_is_copied():
    model = tiny.llama()
    live = LiveTeacher(model, n_vocabulary=48, answers_on="cpu")
    assert live.targets(tiny.batch()).head.weight_VD.data_ptr() == model.lm_head.weight.data_ptr()


# --- on the disk ---
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_on_the_disk_is_the_same_model(tied, tmp_path):
    tiny.llama(layers=3, tied=tied, dtype=torch.float32).save_pretrained(tmp_path)
    whole, spread = (load_model(str(tmp_path), dtype="bfloat16", device_map=places) for places in (None, DISK))
    assert [n for n, p in spread.named_parameters() if not p.is_meta] == [
        "model.embed_tokens.weight" if tied else "lm_head.weight"
    ]
    assert weights_fingerprint(spread) == weights_fingerprint(whole)
    assert n_parameters(spread) == n_parameters(whole)
    ids = torch.arange(48)[None]
    assert torch.equal(spread(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert (home() / "offload").is_dir()
    with torch.no_grad():
        spread.get_output_embeddings().weight[3, 5] += 1.0
    assert weights_fingerprint(spread) != weights_fingerprint(whole)
    del spread
    gc.collect()
    assert not any((home() / "offload").iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays():
    used, left = placement.offload_folder(), home() / "offload" / "1-killed"
    left.mkdir()
    (left / "weight.dat").write_bytes(b"0" * 100)
    other = placement.offload_folder()
    assert used.is_dir() and not left.exists()
    for folder in (used, other):
        placement._remove(folder)
    assert not any((home() / "offload").iterdir())


def test_a_name_that_is_no_part_of_the_model_is_refused(tmp_path):
    tiny.llama(layers=1, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"teacher.device_map: 'mdoel' is no part of the model; it has model, model"):
        load_model(str(tmp_path), device_map={"mdoel": "cpu", "model": "cpu", "lm_head": "cpu"})


@pytest.mark.slow
def test_a_teacher_on_the_disk_trains_and_labels_bitwise_as_one_in_memory(tmp_path, capsys):
    less = {"training": {"steps": 2}, "evaluation": {"overlap": False, "triggers": False}}
    whole = tiny_runs.recipe(tmp_path, **OWN, **less)
    spread = {**whole, "teacher": {"model": whole["teacher"], "device_map": DISK}}
    runs = [tutelage.train(tree, run_dir=tmp_path / f"run-{n}") for n, tree in enumerate((whole, spread))]
    assert "weights are read again in every forward pass" in capsys.readouterr().err
    tiny_runs.assert_same_outcome(runs[1].path, runs[0].path, but=["recipe.yaml"])
    recorded = [json.loads((run.path / "provenance.json").read_text())["teacher"] for run in runs]
    assert recorded[0] == recorded[1]
    caches = [tmp_path / "whole", tmp_path / "spread"]
    for tree, folder in zip((whole, spread), caches, strict=True):
        teacher = tree["teacher"] if isinstance(tree["teacher"], dict) else {"model": tree["teacher"]}
        teacher = {**teacher, "cache": str(folder), "dtype": "bfloat16"}  # it was saved in float32
        tutelage.label({**tree, "teacher": teacher, "cache": {"codec": "topk", "k": 4}})
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*.safetensors")} for f in caches]
    assert files[0] == files[1] and len(files[0]) > 4
    assert read_manifest(caches[0]).asked == read_manifest(caches[1]).asked  # the teacher as it was saved, too


# --- what is refused ---
@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"device": "cuda"}, "teacher.device: 'cuda' is not there; this machine has: cpu"),
        ({"device_map": {"": "cuda:3"}}, "teacher.device_map: 'cuda:3' is not there; this machine has: cpu"),
        ({"device_map": {"model": 0, "lm_head": "cpu"}}, "teacher.device_map: 'cuda:0' is not there"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "label"])
def test_a_device_that_is_not_there_is_one_line_before_anything_is_read(section, said, verb, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    tree = tiny_runs.recipe(tmp_path, student={"config": {"num_hidden_layers": 1}}, cache={"codec": "hidden"})
    tree["teacher"] = {"model": str(tmp_path / "not-there"), "cache": str(tmp_path / "cache"), **section}
    if verb == "train":
        tree = {k: v for k, v in tree.items() if k != "cache"}
        tree["teacher"].pop("cache")
    with pytest.raises(ConfigError) as caught:
        tutelage.train(tree, run_dir=tmp_path / "run") if verb == "train" else tutelage.label(tree)
    assert caught.value.message.startswith(said) and "\n" not in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"model": "a/b", "device_map": "auto"}}, "student.layers copies weights of the teacher, and with"),
        ({"teacher": {"model": "a/b", "device_map": "auto", "train": True}, **OWN}, "and teacher.train exclude each"),
        ({"teacher": {"model": "a/b", "device_map": DISK, "quantize": "int8"}, **OWN}, "and teacher.quantize exclude"),
        ({"teacher": {"model": "a/b", "device_map": DISK, "device": "cpu"}, **OWN}, "teacher.device has no effect"),
        ({"teacher": {"cache": "c", "device_map": DISK}, "student": {"model": "a/b"}}, "teacher.device_map has no"),
        ({"teacher": {"model": "a/b", "device_map": {"": "gpu"}}, **OWN}, "teacher.device_map"),
    ],
)  # fmt: skip
def test_what_a_spread_teacher_cannot_do_is_said_in_one_line(changes, said):
    assert said in error_of(changes)


def test_parts_without_a_place_are_named_with_the_way_out(tmp_path):
    tiny.llama(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(
        tutelage.errors.IntegrityError, match=r"name every part in teacher\.device_map, such as"
    ) as error:
        load_model(str(tmp_path), device_map={"model.layers": "disk"})
    assert error.value.code == "MODEL_LOAD"


def test_a_teacher_that_learns_shares_the_device_of_its_students():
    compute = tutelage.training.precision.ComputePath(device="mps", weight_dtype=torch.float32, threads=1)
    tree = {"teacher": {"model": "a/b", "train": True, "device": "cpu"}, "student": {"model": "a/b"},
            "data": {"sources": [{"text": "x"}]}, "loss": "forward_kl", "training": {"steps": 1}}  # fmt: skip
    with pytest.raises(ConfigError, match="its students train on mps; who learns together shares a device"):
        teachers.device_of(tutelage.recipe.load_recipe(tree), compute)


def test_label_runs_where_the_teacher_is_to_run(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    tree = tiny_runs.recipe(tmp_path, **OWN, cache={"codec": "hidden"}, training={"device": "cuda"})
    tree["teacher"] = {"model": tree["teacher"], "cache": str(tmp_path / "cache"), "device": "cpu"}
    assert tutelage.label(tree).manifest.n_rows  # the student's device need not be here
