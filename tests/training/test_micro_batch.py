"""`training.micro_batch: auto`: the number that fits, found without touching the run, and the same when it goes on."""

import copy
from dataclasses import replace

import pytest
import torch

from tests import tiny
from tests.training.test_trainer import SOFT, V, live, settings
from tutelage.errors import ResourceError
from tutelage.models.fingerprint import weights_fingerprint
from tutelage.training import micro_batch
from tutelage.training.member import Member
from tutelage.training.micro_batch import Probe, fixed_bytes, kept_bytes, largest, most_windows
from tutelage.training.precision import ComputePath


def probe(model, *, length=16, dtype=torch.float32, **changes):
    member = Member(name="student", model=model, terms=(SOFT,), optimizer=settings(), first_step=2)
    return Probe(
        members=[member], teacher=live(tiny.llama(seed=3, dtype=dtype)), n_vocabulary=V, chunk_positions=8,
        longest=lambda n: tiny.batch(rows=n, length=length), gradient_checkpointing=False,
        compute=ComputePath(device="cpu", weight_dtype=dtype, threads=1), **changes,
    )  # fmt: skip


ENDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("end", ENDS, ids=["torch", "cublas", "cudnn", "driver"])
@pytest.mark.parametrize(("fits", "found"), [(16, 16), (15, 8), (1, 1)])
def test_by_trying_the_first_that_fits_is_found_from_the_whole_batch_down(fits, found, end):
    tried = []

    def attempt(n):
        tried.append(n)
        if n > fits:
            raise end

    assert largest(16, attempt) == found
    assert tried == [n for n in (16, 8, 4, 2, 1) if n >= found]


def test_where_not_even_one_window_fits_the_error_says_what_to_set():
    def attempt(_n):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match="not even one window fits") as caught:
        largest(3, attempt)
    assert "training.gradient_checkpointing=true" in caught.value.message


def test_another_error_of_an_attempt_is_not_taken_for_too_little_memory():
    with pytest.raises(ZeroDivisionError):
        largest(4, lambda n: 1 // 0)
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        largest(4, raising_illegal_access)


def raising_illegal_access(_n):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_attempt_is_a_whole_step_and_leaves_the_models_as_they_are():
    model = tiny.llama(seed=1, dtype=torch.float32)
    made, seen = probe(model), []
    before = weights_fingerprint(model)
    micro_batch.try_steps(
        Probe(**{**{n: getattr(made, n) for n in Probe.__dataclass_fields__},
                 "longest": lambda n: seen.append(n) or made.longest(n)}), 3)  # fmt: skip
    assert seen == [3]
    assert weights_fingerprint(model) == before
    assert not any(p.requires_grad and p.grad is not None for p in model.parameters())


def test_what_a_window_keeps_grows_with_its_length_and_its_model_and_shrinks_with_checkpoints():
    small, model = kept_bytes(probe(tiny.llama(dtype=torch.float32))), tiny.llama(layers=4, dtype=torch.float32)
    deep = probe(model)
    assert kept_bytes(deep) > 1.5 * small
    assert kept_bytes(probe(copy.deepcopy(model), length=32)) > 1.9 * kept_bytes(deep)
    fields = {name: getattr(deep, name) for name in Probe.__dataclass_fields__}
    assert kept_bytes(Probe(**{**fields, "gradient_checkpointing": True})) < 0.5 * kept_bytes(deep)


def test_the_weights_of_a_step_are_counted_once_with_their_gradients_and_moments():
    model = tiny.llama(dtype=torch.float32)
    n = sum(p.numel() for p in model.parameters())
    assert fixed_bytes(probe(model)) == 16 * n
    assert fixed_bytes(probe(model, dtype=torch.bfloat16)) == 20 * n
    (member,) = probe(model).members
    n_rounded = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2)
    rounded = replace(probe(model), members=[replace(member, quantize="int8")])
    assert fixed_bytes(rounded) == 16 * n + 8 * n_rounded  # what is computed with, and its gradient
    assert fixed_bytes(replace(rounded, compute=probe(model, dtype=torch.bfloat16).compute)) == 20 * n


def test_what_is_free_is_shared_between_weights_and_windows():
    assert most_windows(64, kept=10, fixed=0, free=150) == 4  # 0.8 * 150 / 25
    assert most_windows(64, kept=10, fixed=60, free=150) == 2
    assert most_windows(4, kept=10, fixed=0, free=10**6) == 4
    assert most_windows(4, kept=10, fixed=10**6, free=150) == 1
    assert 0 < micro_batch.free_bytes() < 10**15
