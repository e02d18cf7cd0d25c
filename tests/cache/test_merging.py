"""`cache merge`: the average of several teachers, unbiased where its parts are, refused where it has no meaning."""

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tutelage
from tests.cache.labelled import Place, sign
from tests.cache.tiny_cache import folder_bytes
from tests.verbs import tiny_runs
from tutelage import io, reading
from tutelage.cache.codec import Positions
from tutelage.cache.codecs import _threshold_mixture
from tutelage.cache.ensemble import held_out_of
from tutelage.cache.merging import merge_seeds
from tutelage.cache.mixture import Mixture, mixed
from tutelage.cache.reader import TeacherCache, read_tensors
from tutelage.cache.tokens import Tokens, find, stored_rows, tokens_of
from tutelage.errors import ConfigError, IntegrityError, TutelageError
from tutelage.models.load import load_model
from tutelage.types import LogitTargets, SampledTargets, TopKTargets

V = 298
BYTES = {"threshold": {"bytes_per_token": 40}, "topk": {}}


def parts(place: Place, codec: str, **more) -> list[Path]:
    return [place.cache(codec, seed=seed, **BYTES[codec], **more) for seed in (0, 1)]


def all_tokens(cache: TeacherCache) -> Tokens:
    rows = find(stored_rows([cache.manifest]), np.concatenate([shard.keys for shard in cache.shards]))
    assert rows is not None
    return tokens_of(rows)


def stored(path: Path, tokens: Tokens, *, draw: int = 0):
    return TeacherCache(path).targets(
        tokens.keys, current_ids_N=tokens.current_ids_N, next_ids_N=tokens.next_ids_N, draws=[draw] * len(tokens.keys)
    )


def dense(targets: SampledTargets | TopKTargets) -> torch.Tensor:
    """Probabilities [N, V] of the entries."""
    if isinstance(targets, TopKTargets):
        p_NV = torch.zeros(len(targets.ids_NK), V, dtype=torch.float64)
        return p_NV.scatter_(-1, targets.ids_NK, targets.logp_NK.double().exp())
    n = len(targets.offsets) - 1
    p_NV = torch.zeros(n, V, dtype=torch.float64)
    p_NV[torch.repeat_interleave(torch.arange(n), targets.offsets.diff()), targets.ids_M] = targets.weights_M.double()
    return p_NV


# --- unbiased ---
def random_sample(n: int, *, seed: int) -> SampledTargets:
    draw = np.random.default_rng(seed)
    ids = [np.sort(draw.choice(V, size=int(draw.integers(1, 9)), replace=False)) for _ in range(n)]
    weights = [draw.dirichlet(np.full(len(i), 0.5)) for i in ids]
    return SampledTargets(
        ids_M=torch.from_numpy(np.concatenate(ids)),
        weights_M=torch.from_numpy(np.concatenate(weights)).float(),
        offsets=torch.tensor([0, *np.cumsum([len(i) for i in ids])]),
        temperature=1.0,
    )


@pytest.mark.parametrize("m", [4, 9, 25])
def test_the_average_is_drawn_without_bias_and_sums_to_1(m: int):
    n, times = 6, 20_000
    samples, weights = [random_sample(n, seed=s) for s in (1, 2, 3)], (0.5, 0.2, 0.3)
    average_NV = sum(w * dense(one) for w, one in zip(weights, samples, strict=True))
    one = mixed(samples, weights=weights, next_logp=[np.zeros(n)] * 3, n_vocabulary=V)
    many = Mixture(
        ids_M=np.tile(one.ids_M, times), p_M=np.tile(one.p_M, times), tail_N=np.tile(one.tail_N, times),
        offsets=np.concatenate([[0], np.cumsum(np.tile(np.diff(one.offsets), times))]),
        next_logp_N=np.tile(one.next_logp_N, times),
    )  # fmt: skip
    nothing = np.zeros(n * times, np.int64)
    rows = Positions(
        current_ids_N=nothing, next_ids_N=nothing, counts_R=np.full(times, n),
        seeds_R=merge_seeds([bytes([i % 256, i // 256]) for i in range(times)], draw=0),
    )  # fmt: skip
    drawn = _threshold_mixture.draw(many, positions=rows, m=m, grains=2)
    assert (np.add.reduceat(drawn.units_M, drawn.offsets[:-1]) == 2 * m).all()
    position_M = np.repeat(np.arange(n * times), np.diff(drawn.offsets))
    cell_M = (position_M % n) * V + drawn.ids_M
    weights_M = drawn.units_M / (2 * m)
    mean_NV = np.bincount(cell_M, weights=weights_M, minlength=n * V) / times
    square_NV = np.bincount(cell_M, weights=weights_M**2, minlength=n * V) / times
    error_NV = np.abs(mean_NV - average_NV.numpy().reshape(-1))
    sigma_NV = np.sqrt(np.maximum(square_NV - mean_NV**2, 0) / times)
    assert (error_NV <= 5 * sigma_NV + 1e-6).all()  # 1e-6: the parts are float32
    assert sigma_NV.max() > 1e-4  # something was drawn


@pytest.mark.slow
def test_a_merged_cache_follows_both_teachers(place: Place, tmp_path: Path):
    """The sum over all positions of (stored - average of the teachers) is noise for every token."""
    path = tutelage.cache.merge(parts(place, "threshold"), tmp_path / "both", weights="1,3").path
    tokens = all_tokens(TeacherCache(path))
    difference_NV = dense(stored(path, tokens)) - _live_average(place, tokens, weights=(0.25, 0.75))
    z_V = difference_NV.sum(0) / difference_NV.square().sum(0).sqrt()
    assert float(z_V.abs().max()) < 5
    other_NV = dense(stored(path, tokens)) - _live_average(place, tokens, weights=(0.75, 0.25))
    assert float((other_NV.sum(0) / other_NV.square().sum(0).sqrt()).abs().max()) > 5


def _live_average(place: Place, tokens: Tokens, *, weights: tuple[float, float]) -> torch.Tensor:
    """Probabilities [N, V] of the two live teachers at the positions of whole documents."""
    of_key = {}
    (rows,) = stored_rows([TeacherCache(place.cache()).manifest])
    for number, key in zip(rows.numbers_R.tolist(), rows.keys_R, strict=True):
        of_key[key.tobytes()] = rows.stores[0].row(number).ids.astype("i8")
    models = [model_of(place, seed) for seed in (0, 1)]
    found = []
    for key in tokens.keys:
        ids_BT = torch.from_numpy(of_key[key])[None]
        p_TV = sum(w * torch.softmax(m(ids_BT).logits[0].double(), -1) for w, m in zip(weights, models, strict=True))
        found.append(p_TV[:-1])
    return torch.cat(found)


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("codec", ["topk", pytest.param("threshold", marks=pytest.mark.slow)])
def test_its_error_is_measured_against_the_average_of_the_live_teachers(
    place: Place, tmp_path: Path, codec: str, held_out: bool
):
    """Through the head of the teacher with the most weight, as the definition says; without held-out rows as well."""
    path = tutelage.cache.merge(parts(place, codec, held_out=held_out), tmp_path / "both", weights="1,3").path
    found, cache = tutelage.cache.inspect(path).error, TeacherCache(path)
    assert found is not None
    kept = read_tensors(path, "probe-1.safetensors", cache.manifest)
    tokens = tokens_of(find(stored_rows([cache.manifest]), kept["keys"].numpy()))
    p_NV, rows_VD = _live_average(place, tokens, weights=(0.25, 0.75)), model_of(place, 1).lm_head.weight.double()
    stored_NV = dense(stored(path, tokens))
    tail_N = 1 - stored_NV.sum(-1, keepdim=True)
    q_V = p_NV.mean(0)
    if codec == "topk":  # the tail is spread over the tokens that are not kept, as the student has them
        rest_NV = torch.where(stored_NV > 0, 0.0, q_V.expand_as(p_NV))
        stored_NV = stored_NV + tail_N * rest_NV / rest_NV.sum(-1, keepdim=True)
    error_ND, gradient_ND = (stored_NV - p_NV) @ rows_VD[:V], (q_V - p_NV) @ rows_VD[:V]
    rms = gradient_ND.square().sum(-1).mean().sqrt()
    assert found.n == len(p_NV) > 500
    assert found.per_position == pytest.approx(float(error_ND.square().sum(-1).mean().sqrt() / rms), rel=1e-3)
    assert found.batch == pytest.approx(float(error_ND.mean(0).norm() / rms), rel=1e-2)


def test_parts_that_kept_other_rows_in_full_are_not_measured(place: Place, tmp_path: Path):
    both = parts(place, "topk", held_out=False)
    less = place.copy(both[1], tmp_path / "less")
    kept = load_file(less / "probe.safetensors")
    n = int(kept["counts"][0])
    save_file({k: v[: {"keys": 1, "counts": 1}.get(k, n)].contiguous() for k, v in kept.items()},
              less / "probe.safetensors")  # fmt: skip
    files = TeacherCache(less).manifest.files
    sign(less, files={**files, "probe.safetensors": reading.sha256_file(less / "probe.safetensors")})
    found = tutelage.cache.inspect(tutelage.cache.merge([both[0], less], tmp_path / "both").path)
    assert found.error is None
    assert "different rows" in found.why_no_error


def model_of(place: Place, seed: int):
    return load_model(str(place.teacher(seed)), dtype="float32")


# --- top-k ---
def test_top_k_is_averaged_on_the_union_and_cut_again(place: Place, tmp_path: Path):
    both = parts(place, "topk")
    path = tutelage.cache.merge(both, tmp_path / "both", weights=[1, 3]).path
    tokens = all_tokens(TeacherCache(path))
    merged = stored(path, tokens)
    average_NV = 0.25 * dense(stored(both[0], tokens)) + 0.75 * dense(stored(both[1], tokens))
    best = average_NV.topk(8, dim=-1)
    torch.testing.assert_close(merged.logp_NK.double().exp(), best.values, atol=1e-3, rtol=1e-3)  # float16
    torch.testing.assert_close(merged.tail_logp_N.double().exp(), 1 - best.values.sum(-1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(dense(merged), torch.zeros_like(average_NV).scatter(-1, best.indices, best.values),
                               atol=2e-3, rtol=0)  # fmt: skip


def test_a_budget_cuts_k(place: Place, tmp_path: Path):
    made = tutelage.cache.merge(parts(place, "topk"), tmp_path / "both", bytes_per_token=20).manifest
    assert made.settings["k"] == 5  # 5 * (9 / 8 + 2) + 3 + 6 a row
    assert sum(s.row_bytes for s in made.shards) / made.n_positions <= 20


@pytest.mark.parametrize("codec", ["topk", pytest.param("threshold", marks=pytest.mark.slow)])
def test_a_cache_averaged_with_itself_is_itself(place: Place, tmp_path: Path, codec: str):
    one, _ = parts(place, codec)
    path = tutelage.cache.merge([one, one], tmp_path / "both", bytes_per_token=400).path
    tokens = all_tokens(TeacherCache(path))
    loose = 2e-3 if codec == "topk" else 1 / TeacherCache(path).manifest.settings["m"]
    torch.testing.assert_close(dense(stored(path, tokens)), dense(stored(one, tokens)), atol=loose, rtol=0)


# --- the cache ---
@pytest.mark.parametrize("codec", ["topk", pytest.param("threshold", marks=pytest.mark.slow)])
def test_a_merged_cache_is_whole_and_always_the_same_bytes(place: Place, tmp_path: Path, codec: str):
    both = parts(place, codec)
    one = tutelage.cache.merge(both, tmp_path / "one").path
    other = tutelage.cache.merge(both, tmp_path / "other").path
    assert folder_bytes(one) == folder_bytes(other)
    found = tutelage.cache.verify(one)
    assert (found.n_rows, found.n_decoded, found.unlisted) == (48, 48, ())  # 32, and 8 held out of each
    told = tutelage.cache.inspect(one)
    assert [m["weight"] for m in told.as_json()["members"]] == [0.5, 0.5]
    assert "teacher-1" in str(told)
    assert list(tmp_path.glob("*partial*")) == []
    path = one / "held_out-1" / "tables.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IntegrityError) as damaged:
        tutelage.cache.verify(one)
    assert damaged.value.code == "CHECKSUM"


@pytest.mark.slow
def test_the_default_budget_is_the_largest_of_the_parts_and_is_kept(place: Place, tmp_path: Path):
    made = tutelage.cache.merge(parts(place, "threshold"), tmp_path / "both").manifest
    assert made.asked.bytes_per_token == 40
    assert 25 < sum(s.row_bytes for s in made.shards) / made.n_positions < 44


@pytest.mark.slow
def test_several_draws_stay_several(place: Place, tmp_path: Path):
    path = tutelage.cache.merge(parts(place, "threshold", draws=2), tmp_path / "both").path
    tokens = all_tokens(TeacherCache(path))
    first, second = (dense(stored(path, tokens, draw=draw)) for draw in (0, 1))
    assert (first != second).any(-1).double().mean() > 0.9


def test_held_out_rows_are_averaged_when_they_are_read(place: Place, tmp_path: Path):
    path = tutelage.cache.merge(parts(place, "topk"), tmp_path / "both", weights="1,3").path
    cache = TeacherCache(path)
    assert cache.held_out is None
    held_out = held_out_of(cache)
    tokens = all_tokens(TeacherCache(path / "held_out-0"))
    assert held_out is not None
    assert held_out.has_all([key.hex() for key in tokens.keys])
    found = held_out.targets(
        tokens.keys, current_ids_N=tokens.current_ids_N, next_ids_N=tokens.next_ids_N, draws=[0] * len(tokens.keys)
    )
    assert isinstance(found, LogitTargets)
    live_NV = _live_average(place, tokens, weights=(0.25, 0.75))
    torch.testing.assert_close(torch.softmax(found.logits_NV.double(), -1), live_NV, atol=5e-3, rtol=0)  # 8 bits


@pytest.mark.slow
def test_a_student_learns_from_a_merged_cache_and_is_compared_with_the_ensemble(place: Place, tmp_path: Path):
    path = tutelage.cache.merge(parts(place, "threshold"), tmp_path / "both").path
    run = tutelage.train(place.recipe(path, codec="threshold", **BYTES["threshold"]), run_dir=tmp_path / "run")
    assert "KL to" in str(run)
    with pytest.raises(ConfigError, match="made otherwise") as refused:
        tutelage.label(place.recipe(path, codec="threshold", **BYTES["threshold"]))
    assert refused.value.code == "CACHE_MISMATCH"


def test_killed_anywhere_it_leaves_no_cache_and_the_next_call_makes_the_same(place: Place, tmp_path: Path, monkeypatch):
    both, output = parts(place, "topk"), tmp_path / "both"
    whole = folder_bytes(tutelage.cache.merge(both, tmp_path / "whole").path)
    n_operations = _operations(monkeypatch, lambda: tutelage.cache.merge(both, tmp_path / "counted"))
    assert n_operations > 30
    for last in range(0, n_operations - 2, 5):
        left = itertools.count()

        def die(_operation, left=left, last=last):
            if next(left) >= last:
                raise KeyboardInterrupt

        monkeypatch.setattr(io, "FAULTS", die)
        with pytest.raises(KeyboardInterrupt):
            tutelage.cache.merge(both, output)
        monkeypatch.setattr(io, "FAULTS", None)
        assert not output.exists()
    assert folder_bytes(tutelage.cache.merge(both, output).path) == whole


def test_two_at_once_make_one_cache_and_the_second_is_told_that_it_is_there(place: Place, tmp_path: Path, monkeypatch):
    """The first waits in the middle of its work until the second waits for it: neither takes the other's files away."""
    both, output, ended = parts(place, "topk"), tmp_path / "both", []
    whole = folder_bytes(tutelage.cache.merge(both, tmp_path / "whole").path)

    def second() -> None:
        try:
            tutelage.cache.merge(both, output)
        except TutelageError as error:
            ended.append(error.code)

    other, count = threading.Thread(target=second), itertools.count()

    def begin_the_second(_operation) -> None:
        if threading.current_thread() is threading.main_thread() and next(count) == 10:
            other.start()
            time.sleep(0.3)

    monkeypatch.setattr(io, "FAULTS", begin_the_second)
    tutelage.cache.merge(both, output)
    other.join()
    assert ended == ["EXISTS"]
    assert folder_bytes(output) == whole


def _operations(monkeypatch, action) -> int:
    n = itertools.count()
    monkeypatch.setattr(io, "FAULTS", lambda _operation: next(n) and None)
    action()
    monkeypatch.setattr(io, "FAULTS", None)
    return next(n)


# --- refusals ---
def refused(kind: type[TutelageError], code: str, match: str, paths, output: Path, **more) -> None:
    with pytest.raises(kind, match=match) as found:
        tutelage.cache.merge(paths, output, **more)
    assert found.value.code == code
    assert not output.exists()


def test_what_is_there_is_not_overwritten(place: Place, tmp_path: Path):
    with pytest.raises(ConfigError, match="already there") as found:
        tutelage.cache.merge(parts(place, "topk"), tmp_path)
    assert found.value.code == "EXISTS"


def test_one_cache_is_no_ensemble(place: Place, tmp_path: Path):
    refused(ConfigError, "CONFIG", "expected two or more", parts(place, "topk")[:1], tmp_path / "out")


@pytest.mark.parametrize("codec", ["hidden", "dense"])
def test_whole_distributions_are_not_merged_and_what_to_do_is_named(place: Place, tmp_path: Path, codec: str):
    both = [place.cache(codec), place.cache(codec)]
    refused(ConfigError, "CONFIG", "cache.codec=threshold or topk.*read as an ensemble", both, tmp_path / "out")


def test_an_average_is_not_averaged_again(place: Place, tmp_path: Path):
    one, two = parts(place, "topk")
    both = tutelage.cache.merge([one, two], output=tmp_path / "both").path
    refused(ConfigError, "CONFIG", "merge the caches that it was made of", [both, one], tmp_path / "out")


def test_two_codecs_are_refused(place: Place, tmp_path: Path):
    both = [parts(place, "topk")[0], parts(place, "threshold")[1]]
    refused(ConfigError, "CACHE_MISMATCH", "differ in codec", both, tmp_path / "out")


def test_two_temperatures_are_refused(place: Place, tmp_path: Path):
    both = [parts(place, "topk")[0], place.cache("topk", seed=1, temperature=2.0)]
    refused(ConfigError, "CACHE_TEMPERATURE", "temperature 1, .* at 2", both, tmp_path / "out")


@pytest.mark.parametrize(("field", "value"), [("tokenizer", "f" * 64), ("template", "f" * 64), ("max_length", 31)])
def test_caches_of_other_text_are_refused(place: Place, tmp_path: Path, field: str, value):
    one, other = parts(place, "topk")
    changed = place.copy(other, tmp_path / "changed")
    sign(changed, asked=TeacherCache(changed).manifest.asked.model_copy(update={field: value}))
    refused(ConfigError, "CACHE_MISMATCH", f"differ in {field}", [one, changed], tmp_path / "out")


def test_other_rows_are_refused_with_their_number(place: Place, tmp_path: Path):
    both = [parts(place, "topk")[0], place.cache("topk", seed=1, held_out=False)]
    refused(IntegrityError, "CACHE_MISS", "8 of 40 rows of .* are not in", both, tmp_path / "out")


@pytest.mark.parametrize("weights", ["1", "1,2,3", "1,0", "1,-1", "a,b", "1,inf", "nan,1", [1.0]])
def test_weights_that_are_none_are_refused(place: Place, tmp_path: Path, weights):
    refused(ConfigError, "CONFIG", "expected 2 positive numbers", parts(place, "topk"), tmp_path / "o", weights=weights)


@pytest.mark.parametrize(("codec", "least"), [("topk", "top-1 takes"), ("threshold", "at its smallest m = 4")])
def test_a_budget_that_cannot_be_met_is_refused(place: Place, tmp_path: Path, codec: str, least: str):
    refused(ConfigError, "CONFIG", least, parts(place, codec), tmp_path / "out", bytes_per_token=0.5)


def test_a_tail_and_none_are_refused(place: Place, tmp_path: Path):
    both = [parts(place, "topk")[0], place.cache("topk", seed=1, tail=False)]
    refused(ConfigError, "CACHE_MISMATCH", "some have none", both, tmp_path / "out")


def test_without_the_tokens_the_way_to_get_them_is_named(place: Place, tmp_path: Path, monkeypatch):
    both = parts(place, "topk")
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))
    refused(ConfigError, "CONFIG", "tokens of 32 of 32 rows .* tutelage label RECIPE", both, tmp_path / "out")


def test_the_command_prints_the_place(place: Place, tmp_path: Path):
    one, other = parts(place, "topk")
    code, out, err = tiny_runs.call("cache", "merge", one, other, "--output", tmp_path / "both", "--weights", "0.7,0.3")
    assert (code, out.strip()) == (0, str(tmp_path / "both"))
    assert "0.7 " in err
