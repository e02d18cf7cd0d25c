"""Every mistake of a recipe at once, in one line, with its path and the way out."""

from typing import Any

import pytest

from tests.recipe_trees import (
    KNOWN_DIVERGENCES,
    MINIMAL,
    TRAINING_FIELDS,
    data,
    error_of,
    loss,
    problems,
    training,
)

CACHED = {"model": "/teacher", "cache": "x"}

BROKEN: list[tuple[dict[str, Any], str]] = [
    # E1: unknown and misspelt keys
    (loss(temprature=2.0), "loss[0].temprature unknown (temperature?)"),
    ({"loss": {"divergence": "forward_kl", "temprature": 1}}, "loss.temprature unknown (temperature?)"),
    (training(lr=1e-3), "training.lr unknown (learning_rate?)"),
    (training(temperature=2.0), "training.temperature unknown (loss[].temperature?)"),
    (training(qqq=1), f"training.qqq unknown; {TRAINING_FIELDS}"),
    ({"learning_rate": 1e-3}, "learning_rate unknown (training.learning_rate?)"),
    (data(max_len=3), "data.max_len unknown (max_length?)"),
    ({"student": {"layer": 3}}, "student.layer unknown (layers?)"),
    # types
    (training(seed="x"), "training.seed must be a whole number >= 0, got 'x'"),
    (training(seed=True), "training.seed must be a whole number >= 0, got True"),
    (training(seed=0.5), "training.seed must be a whole number >= 0, got 0.5"),
    (
        training(track="tensorbord"),
        "training.track 'tensorbord' unknown (tensorboard?); known: mlflow, tensorboard, trackio, wandb",
    ),
    (training(learning_rate="1e-3"), "training.learning_rate must be a number > 0, got '1e-3'"),
    (training(betas=[0.9]), "training.betas[1] is missing"),
    (
        {"student": 3},
        "student must be a mapping with layers, width, model, revision, init, lora, quantize, config, got 3",
    ),
    (
        {"teacher": ["a"]},
        "teacher must be a mapping with model, cache, api, writers, answers, terms, revision, dtype, quantize, device, "
        "device_map, ensemble, config, tokenizer, train, got ['a']",
    ),
    (
        {"student": {"layers": "twenty"}},
        "student.layers must be a mapping with important, evenly, listed, got 'twenty'",
    ),
    ({"training": None}, "training must be a mapping with " + TRAINING_FIELDS.removeprefix("known: ") + ", got None"),
    # E2: ranges
    (loss(weight=-1), "loss[0].weight must be >= 0, got -1"),
    (loss(weight=float("nan")), "loss[0].weight must be a finite number, got nan"),
    (loss(temperature=0), "loss[0].temperature must be > 0, got 0"),
    (loss(temperature=-0.5), "loss[0].temperature must be > 0, got -0.5"),
    (loss(temperature=float("inf")), "loss[0].temperature must be a finite number, got inf"),
    (training(learning_rate=float("nan")), "training.learning_rate must be a finite number > 0, got nan"),
    (training(learning_rate=0), "training.learning_rate must be > 0, got 0"),
    (training(ema=1), "training.ema must be in (0, 1), got 1"),
    (training(warmup=1.0), "training.warmup must be in [0, 1), got 1.0"),
    (training(warmup=0.9, decay=0.5), "training.warmup and decay together must be <= 1, got 0.9 + 0.5"),
    (training(batch_tokens=500), "training.batch_tokens must be a multiple of data.max_length 512, got 500 (512?)"),
    ({"training": {"tokens": 9}}, "training.tokens must be at least one step of training.batch_tokens 8192, got 9"),
    (
        training(save_every=1.5),
        "training.save_every must be a whole number of tokens >= 1, or a share of the run in (0, 1), got 1.5",
    ),
    (training(device="gpu"), "training.device must be auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
    (data(held_out=0), "data.held_out must be in (0, 1), got 0; to keep nothing write null"),
    (data(held_out=1.0), "data.held_out must be in (0, 1), got 1.0"),
    (data(max_reject=2), "data.max_reject must be in [0, 1], got 2"),
    ({"student": {"layers": [3, 1]}}, "student.layers must rise, each layer once, got [3, 1]"),
    ({"student": {"layers": [1, 1]}}, "student.layers must rise, each layer once, got [1, 1]"),
    ({"student": {"layers": [-1, 1]}}, "student.layers[0] must be >= 0, got -1"),
    ({"student": {"layers": 0}}, "student.layers must be >= 1, got 0"),
    ({"loss": []}, "loss must not be empty"),
    (data(sources=[]), "data.sources must not be empty"),
    (loss(weight=0), "loss has only terms of weight 0: nothing would be learned"),
    (
        {"student": {"config": {"a": {"b": [float("nan")]}}}},
        "student.config.a.b[0] must be a finite number, got nan",
    ),
    # B9: a blend at its ends
    (
        {"loss": [{"divergence": "jensen_shannon", "beta": 0}]},
        "loss[0].beta must be in (0, 1), got 0; for beta=0 use forward_kl, for beta=1 reverse_kl",
    ),
    (
        {"loss": [{"divergence": "jensen_shannon", "beta": 1.0}]},
        "loss[0].beta must be in (0, 1), got 1.0; for beta=0 use forward_kl, for beta=1 reverse_kl",
    ),
    (
        {"loss": [{"divergence": "skew_kl", "alpha": 0}]},
        "loss[0].alpha must be in (0, 1), got 0; for alpha=0 use forward_kl or reverse_kl",
    ),
    (
        {"student": {"layers": 2, "lora": {"alpha": 0}}},
        "student.lora.alpha must be > 0, got 0",
    ),
    *(
        (
            {"student": {"layers": 2, "lora": {"targets": wrong}}},
            "student.lora.targets must be all-linear, or names of layers such as [q_proj, v_proj], got " + shown,
        )
        for wrong, shown in (([], "[]"), ("q_proj", "'q_proj'"), ([3], "[3]"))
    ),
    # E3: no effect, or one too many
    (loss(beta=0.5), "loss[0].beta has no effect with forward_kl; remove it"),
    (loss(alpha=0.5), "loss[0].alpha has no effect with forward_kl; remove it"),
    (
        {"loss": [{"divergence": "skew_kl", "beta": 0.5}]},
        "loss[0].beta has no effect with skew_kl; remove it",
    ),
    (
        {"loss": ["forward_kl", {"cross_entropy": "ground_truth", "temperature": 2.0}]},
        "loss[1].temperature has no effect with cross_entropy; remove it",
    ),
    (
        {"loss": [{"divergence": "forward_kl", "cross_entropy": "ground_truth"}]},
        "loss[0] needs exactly one of divergence, cross_entropy, features; found divergence and cross_entropy",
    ),
    ({"loss": [{"weight": 1.0}]}, "loss[0] needs exactly one of divergence, cross_entropy, features; found none"),
    (
        {"loss": ["forward_kl", {"forward_kl": 0.5}]},
        "loss[1] repeats loss[0] (forward_kl); one term with the sum of the weights is the same",
    ),
    (
        training(schedule="cosine", decay=0.2),
        "training.decay has no effect with schedule cosine: only wsd has it; remove it",
    ),
    (training(steps=3), "training needs exactly one of tokens, steps, epochs; found tokens and steps"),
    ({"teacher": {}}, "teacher needs exactly one of model, ensemble, config; found none"),
    ({"student": {}}, "student needs exactly one of layers, width, model, config; found none"),
    ({"training": {}}, "training needs exactly one of tokens, steps, epochs; found none"),
    ({"training": {"seed": 3}}, "training needs exactly one of tokens, steps, epochs; found none"),
    (
        {**training(evaluate_every=0.1), **data(held_out=None)},
        "training.evaluate_every has no effect without held-out data; remove it",
    ),
    (
        training(evaluate_every=2_000_000),
        "training.evaluate_every has no effect in a run of 2000000 tokens; remove it",
    ),
    (
        training(micro_batch=17),
        "training.micro_batch must be at most 16, the windows of training.batch_tokens, got 17",
    ),
    (training(micro_batch=0), "training.micro_batch must be auto, or a whole number from 1, got 0"),
    (training(micro_batch="most"), "training.micro_batch must be auto, or a whole number from 1, got 'most'"),
    (
        data(sources=[{"text": "a.txt", "weight": 2.0}]),
        "data.sources[0].weight has no effect with one source; remove it",
    ),
    (
        data(sources=[{"text": "a.txt", "name": "x"}, {"text": "b.txt", "name": "x"}]),
        "data.sources[1].name repeats sources[0].name 'x'; tables need two names",
    ),
    (training(early_stop={"patience": 3}), "training.early_stop needs training.evaluate_every"),
    (
        data(chat_template="{{ messages }}"),
        "data.chat_template has no effect without a source that has answers or messages; remove it",
    ),
    (data(train_on="answers"), "data.train_on answers needs a source with answers or messages; all have plain text"),
    (
        data(sources=[{"text": "a.txt", "columns": {"text": "t"}}]),
        "data.sources[0].columns has no effect without jsonl, parquet or hub; remove it",
    ),
    (
        data(sources=[{"text": "a.txt", "python_docs": True}]),
        "data.sources[0] needs exactly one of text, jsonl, parquet, hub, answers, python_docs, "
        "python_source; found text and python_docs",
    ),
    (
        data(sources=[{"jsonl": "a.jsonl", "prompt": "q"}]),
        "data.sources[0].columns must name text, or prompt and answer, or messages (and tools), or "
        "conversations, or prompt and chosen, or chosen; found prompt",
    ),
    (
        data(held_out=[{"text": "a.txt", "weight": 2.0}]),
        "data.held_out[0].weight has no effect where nothing is trained: every row is measured; remove it",
    ),
    (
        {"loss": "ground_truth", "control": True},
        "control has no effect when the loss is cross-entropy on ground truth: this run is the control; remove it",
    ),
    (
        {**data(held_out=None), "evaluation": {"rows": 5}},
        "evaluation.rows has no effect without held-out or out-of-domain data; remove it",
    ),
    (
        {"teacher": {"model": "./here", "revision": "main"}},
        "teacher.revision has no effect with a model that is not a hub id; remove it",
    ),
    (
        {"student": {"layers": 3, "revision": "main"}},
        "student.revision has no effect without a hub id in student.model; remove it",
    ),
    (
        {"student": {"layers": 3, "model": "a/b"}},
        "student needs exactly one of layers, width, model, config; found layers and model",
    ),
    (
        loss(weight={"schedule": "constant", "start": 1.0, "end": 2.0}),
        "loss[0].weight.end has no effect with schedule constant; remove it",
    ),
    (
        loss(weight={"schedule": "linear", "start": 1.0}),
        "loss[0].weight.end is missing: linear goes from start to end",
    ),
    (
        loss(weight={"schedule": "linear", "start": 1.0, "end": 0.5, "decay": 0.1}),
        "loss[0].weight.decay has no effect with schedule linear: only wsd has it; remove it",
    ),
    (
        loss(temperature={"schedule": "linear", "start": 1.0, "end": 0.5, "warmup": 0.1}),
        "loss[0].temperature.warmup is for weights: a temperature cannot rise from 0; use linear",
    ),
    # E4: names
    (
        {"loss": [{"divergence": "jensn_shannon"}]},
        f"loss[0].divergence 'jensn_shannon' unknown (jensen_shannon?); {KNOWN_DIVERGENCES}",
    ),
    ({"loss": [{"divergence": "../x"}]}, f"loss[0].divergence '../x' unknown; {KNOWN_DIVERGENCES}"),
    ({"loss": [{"divergence": ""}]}, f"loss[0].divergence '' unknown; {KNOWN_DIVERGENCES}"),
    ({"loss": ["kl"]}, f"loss[0] 'kl' unknown (forward_kl?); {KNOWN_DIVERGENCES}"),
    (
        {"loss": [{"cross_entropy": "truth"}]},
        "loss[0].cross_entropy 'truth' unknown (ground_truth?); known: ground_truth, teacher_argmax",
    ),
    (training(schedule="wds"), "training.schedule 'wds' unknown (wsd?); known: wsd, cosine, constant"),
    (
        loss(weight={"schedule": "lineal", "start": 1.0, "end": 0.0}),
        "loss[0].weight.schedule 'lineal' unknown (linear?); known: constant, linear, cosine, wsd",
    ),
    # a teacher cache
    (
        {"cache": {"codec": "treshold"}},
        "cache.codec 'treshold' unknown (threshold?); known: dense, hidden, threshold, topk",
    ),
    ({"cache": {"codec": "../x"}}, "cache.codec '../x' unknown; known: dense, hidden, threshold, topk"),
    ({"cache": {"codec": "topk"}}, "cache.k is missing: topk needs k, bytes_per_token or error"),
    (
        {"cache": {"bytes_per_token": 16, "error": 0.1}},
        "cache needs at most one of bytes_per_token, error, threshold, k; found bytes_per_token and error",
    ),
    ({"cache": {"k": 4}}, "cache.k has no effect with codec threshold: it belongs to topk; remove it"),
    (
        {"cache": {"codec": "hidden", "error": 0.1}},
        "cache.error has no effect with codec hidden: its size follows from the model; remove it",
    ),
    (
        {"cache": {"codec": "hidden", "temperature": 2.0}},
        "cache.temperature has no effect with codec hidden: it serves every temperature; remove it",
    ),
    *(
        (
            {"teacher": {"model": "/teacher", "device_map": wrong}, "student": {"model": "/s"}},
            "teacher.device_map must be auto, or a device number, cpu or disk by the name of a part, such as "
            f"{{'': disk}}, got {wrong!r}",
        )
        for wrong in ("disk", 0, {}, {"": "gpu"}, {"": -1}, {"": True}, ["cpu"])
    ),
    (
        {"teacher": {"model": "/teacher", "device_map": {"": "cpu", "lm_head": "disk"}}, "student": {"model": "/s"}},
        "teacher.device_map names '', which is all of it, and parts: name every part, or '' alone, got "
        "{'': 'cpu', 'lm_head': 'disk'}",
    ),
    ({"cache": {"threshold": 0.3}}, "cache.threshold must be in [0.0025, 0.25], got 0.3"),
    ({"cache": {"draws": 0}}, "cache.draws must be >= 1, got 0"),
    (data(missing_soft="drop"), "data.missing_soft has no effect without teacher.cache; remove it"),
    (
        {"teacher": CACHED, "cache": {"rows": "run"}, **data(missing_soft="drop")},
        "cache.rows run and data.missing_soft: drop exclude each other: without the dropped rows others are read",
    ),
    (
        {"teacher": CACHED, "cache": {"rows": "run"}, **data(curriculum="teacher_loss")},
        "cache.rows run and data.curriculum exclude each other: the order needs the teacher's loss on all rows",
    ),
    ({"teacher": CACHED, "cache": {"rows": "all"}}, "cache.rows 'all' unknown; known: run"),
    (
        {"teacher": {"cache": "x"}, "student": {"layers": 3}},
        "teacher.model is missing: student.layers copies layers of the teacher, and a cache holds no weights; name the "
        "model beside the cache, or give student.model",
    ),
    (
        {"teacher": {"cache": "x", "dtype": "float32"}, "student": "a/b"},
        "teacher.dtype has no effect with a cache alone: no teacher runs; remove it",
    ),
    # later versions, and what a recipe never does
    (
        {"teacher": {"model": "a/b", "top_k": "x"}},
        "teacher.top_k is not in this version (0.1.0); it knows model, cache, api, writers, answers, terms, "
        "revision, dtype, quantize, device, device_map, ensemble, config, tokenizer, train",
    ),
    (
        data(sources=[{"text": "a.txt", "split": "test"}]),
        "data.sources[0].split has no effect without hub; remove it",
    ),
    (
        {"student": {"config": {"auto_map": {"a": "b"}}}},
        "student.config.auto_map is refused: a recipe never makes a model run its own code",
    ),
    ({"teacher": None}, "teacher is missing: loss[0] needs it"),
    ({"teacher": None, "loss": "ground_truth"}, "teacher is missing: student.layers needs it"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=[message[:60] for _, message in BROKEN])
def test_a_mistake_is_one_line_with_its_path_and_the_way_out(changes: dict[str, Any], message: str) -> None:
    assert error_of(changes) == message


def test_all_mistakes_are_listed_together() -> None:
    listed = problems(
        {
            **MINIMAL,
            "teacher": {"model": "a", "top_k": "b"},
            "loss": [{"divergence": "jensen_shannon", "beta": 1, "weight": -1, "temprature": 2}],
            "training": {"tokens": 1_000_000, "steps": 3, "schedule": "cosine", "decay": 0.1},
            "control": 3,
        }
    )
    fields = {"teacher.top_k", "loss[0].temprature", "loss[0].beta", "loss[0].weight", "training.decay", "control"}
    assert {line.split()[0] for line in listed} >= fields | {"training"}
