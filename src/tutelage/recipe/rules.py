"""What no single field can know: choices that exclude each other, fields without effect, values that do not fit.

Works on the long form before its types are checked, so that these mistakes are listed together with all others;
what has the wrong type is passed over here, because its own field names it.
"""

from collections.abc import Iterator
from typing import Any  # a recipe before its check is whatever the user wrote

from tutelage.losses.names import DIVERGENCES
from tutelage.recipe import text_rules
from tutelage.recipe.fields import is_local
from tutelage.recipe.problems import Path, Problem, is_finite, section_at

Tree = dict[str, Any]


def broken(tree: Tree) -> Iterator[Problem]:
    """Every problem that spans several fields of a recipe in its long form."""
    yield from _teacher(tree)
    yield from _student(tree)
    yield from _data(_section(tree, "data"))
    yield from _loss(tree)
    yield from _training(tree)
    yield from _cache(tree)
    yield from _evaluation(tree)
    yield from text_rules.broken(tree)
    yield from _code(tree, ())


def _section(tree: Tree, name: str) -> Tree:
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


def _items(tree: Tree, name: str) -> list[tuple[int, Tree]]:
    value = tree.get(name)
    return [(i, v) for i, v in enumerate(value) if isinstance(v, dict)] if isinstance(value, list) else []


def _given(section: Tree, *names: str) -> list[str]:
    return [name for name in names if section.get(name) is not None]


def _exactly_one(section: Any, *names: str, path: Path) -> Iterator[Problem]:
    """One kind must be chosen; a name that is misspelt is said on its own."""
    expected = section_at(path)
    if not isinstance(section, dict) or expected is None:
        return
    given = _given(section, *names)
    misspelt = not given and section.keys() - expected.model_fields.keys()
    if len(given) != 1 and not misspelt:
        known = ", ".join(name for name in names if name != "memory")
        found = f"found {' and '.join(given)}" if given else "found none"
        yield Problem(path, f"needs exactly one of {known}; {found}")


def _dead(path: Path, why: str) -> Problem:
    return Problem(path, f"has no effect {why}; remove it")


def _teacher(tree: Tree) -> Iterator[Problem]:
    teacher, student = _section(tree, "teacher"), _section(tree, "student")
    model = teacher.get("model")
    if not _given(teacher, "cache", "api", "answers"):
        yield from _exactly_one(tree.get("teacher"), "model", "memory", path=("teacher",))
    elif teacher.get("cache") is not None and model is None and teacher.get("memory") is None:
        yield from _without_weights(teacher, student)
    if teacher.get("revision") is not None and (teacher.get("memory") or (isinstance(model, str) and is_local(model))):
        yield _dead(("teacher", "revision"), "with a model that is not a hub id")
    if tree.get("teacher") is not None:
        return
    asking = [f"loss[{i}]" for i, t in _items(tree, "loss") if t.get("cross_entropy") != "ground_truth"]
    asking += [f"student.{name}" for name in _given(student, "layers", "config")]
    if asking:
        yield Problem(("teacher",), f"is missing: {asking[0]} needs it")


def _without_weights(teacher: Tree, student: Tree) -> Iterator[Problem]:
    """A cache alone: what would need the teacher itself."""
    if student.get("layers") is not None:
        why = "student.layers copies layers of the teacher, and a cache holds no weights"
        yield Problem(
            ("teacher", "model"), f"is missing: {why}; name the model beside the cache, or give student.model"
        )
    for name in _given(teacher, "revision", "dtype", "device"):
        if teacher[name] not in ("auto",):
            yield _dead(("teacher", name), "with a cache alone: no teacher runs")


def _student(tree: Tree) -> Iterator[Problem]:
    student = _section(tree, "student")
    yield from _exactly_one(tree.get("student"), "layers", "model", "config", "memory", path=("student",))
    model = student.get("model")
    if student.get("revision") is not None and not (isinstance(model, str) and not is_local(model)):
        yield _dead(("student", "revision"), "without a hub id in student.model")
    layers = _section(student, "layers")
    yield from _exactly_one(student.get("layers"), "important", "evenly", "listed", path=("student", "layers"))
    listed = layers.get("listed")
    if isinstance(listed, list) and all(is_finite(i) for i in listed) and listed != sorted(set(listed)):
        yield Problem(("student", "layers", "listed"), f"must rise, each layer once, got {listed}")


def _data(data: Tree) -> Iterator[Problem]:
    yield from _sources(data, ("data",), name="sources", measured=False)
    held_out = _section(data, "held_out")
    yield from _exactly_one(data.get("held_out"), "share", "sources", path=("data", "held_out"))
    yield from _sources(held_out, ("data", "held_out"), name="sources", measured=True)
    sources = [s for _, s in _items(data, "sources")]
    if sources and data.get("reasoning") == "think" and not any(s.get("answers") for s in sources):
        yield _dead(("data", "reasoning"), "without a source of answers")
    if not sources or any(_has_answers(s) for s in sources):
        return
    if data.get("train_on") == "answers":
        yield Problem(("data", "train_on"), "answers needs a source with answers or messages; all have plain text")
    if data.get("chat_template") is not None:
        yield _dead(("data", "chat_template"), "without a source that has answers or messages")


def _has_answers(source: Tree) -> bool:
    return bool(_given(_section(source, "columns"), "answer", "messages") or _given(source, "memory", "answers"))


_KINDS = ("text", "jsonl", "answers", "python_docs", "python_source", "memory")


def _sources(section: Tree, path: Path, *, name: str, measured: bool) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for i, source in _items(section, name):
        here = (*path, name, i)
        yield from _exactly_one(source, *_KINDS, path=here)
        if source.get("weight") not in (None, 1) and (measured or len(section[name]) == 1):
            why = "where nothing is trained: every row is measured" if measured else "with one source"
            yield _dead((*here, "weight"), why)
        called = source.get("name")
        if isinstance(called, str) and names.setdefault(called, i) != i:
            yield Problem((*here, "name"), f"repeats {name}[{names[called]}].name {called!r}; tables need two names")
        if source.get("separator") is not None and source.get("text") is None:
            yield _dead((*here, "separator"), "without text")
        columns = _section(source, "columns")
        if columns and source.get("jsonl") is None:
            yield _dead((*here, "columns"), "without jsonl")
        elif columns:
            yield from _columns(columns, (*here, "columns"))


def _columns(columns: Tree, path: Path) -> Iterator[Problem]:
    given = _given(columns, "text", "prompt", "answer", "messages")
    if given and given not in (["text"], ["prompt", "answer"], ["messages"]):
        yield Problem(path, f"must name text, or prompt and answer, or messages; found {' and '.join(given)}")


def _loss(tree: Tree) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    terms = _items(tree, "loss")
    for i, term in terms:
        path = ("loss", i)
        yield from _exactly_one(term, "divergence", "cross_entropy", path=path)
        yield from _term(term, path)
        name = term.get("divergence") or term.get("cross_entropy")
        if isinstance(name, str) and seen.setdefault(name, i) != i:
            yield Problem(
                path, f"repeats loss[{seen[name]}] ({name}); one term with the sum of the weights is the same"
            )
    constants = [_constant(term.get("weight")) for _, term in terms]
    if constants and all(c == 0 for c in constants):
        yield Problem(("loss",), "has only terms of weight 0: nothing would be learned")
    if tree.get("control") is True and terms and all(t.get("cross_entropy") == "ground_truth" for _, t in terms):
        yield _dead(("control",), "when the loss is cross-entropy on ground truth: this run is the control")


def _term(term: Tree, path: Path) -> Iterator[Problem]:
    divergence = term.get("divergence")
    if term.get("cross_entropy") is not None and divergence is None:
        for name in _given(term, "temperature", "beta", "alpha"):
            yield _dead((*path, name), "with cross_entropy")
    if isinstance(divergence, str) and divergence in DIVERGENCES:
        for name in _given(term, "beta", "alpha"):
            if name not in DIVERGENCES[divergence]:
                yield _dead((*path, name), f"with {divergence}")
    yield from _schedule(_section(term, "weight"), (*path, "weight"), positive=False)
    yield from _schedule(_section(term, "temperature"), (*path, "temperature"), positive=True)


def _schedule(schedule: Tree, path: Path, *, positive: bool) -> Iterator[Problem]:
    kind = schedule.get("schedule")
    for name in ("start", "end"):
        value = schedule.get(name)
        if is_finite(value) and (value <= 0 if positive else value < 0):
            yield Problem((*path, name), f"must be {'> 0' if positive else '>= 0'}, got {value}")
    if kind == "constant":
        if schedule.get("end") is not None:
            yield _dead((*path, "end"), "with schedule constant")
    elif isinstance(kind, str) and schedule.get("end") is None:
        yield Problem((*path, "end"), f"is missing: {kind} goes from start to end")
    if kind != "wsd" and schedule.get("decay") is not None:
        yield _dead((*path, "decay"), f"with schedule {kind}: only wsd has it")
    if positive and is_finite(schedule.get("warmup")) and schedule["warmup"] > 0:
        yield Problem((*path, "warmup"), "is for weights: a temperature cannot rise from 0; use linear")
    yield from _shares(schedule, path)


def _shares(section: Tree, path: Path) -> Iterator[Problem]:
    warmup, decay = section.get("warmup", 0.0), section.get("decay")
    decay = 0.2 if decay is None and section.get("schedule") == "wsd" else decay
    if is_finite(warmup) and is_finite(decay) and warmup < 1 and decay < 1 < warmup + decay:
        yield Problem((*path, "warmup"), f"and decay together must be <= 1, got {warmup} + {decay}")


def _constant(weight: Any) -> float | None:
    """The weight of a term, if it never changes."""
    if weight is None:
        return 1.0
    if isinstance(weight, dict) and weight.get("schedule") == "constant" and is_finite(weight.get("start")):
        return float(weight["start"])
    return None


def _training(tree: Tree) -> Iterator[Problem]:
    training, data = _section(tree, "training"), _section(tree, "data")
    path: Path = ("training",)
    yield from _exactly_one(tree.get("training"), "tokens", "steps", "epochs", path=path)
    schedule = training.get("schedule", "wsd")
    if training.get("decay") is not None and schedule in ("cosine", "constant"):
        yield _dead((*path, "decay"), f"with schedule {schedule}: only wsd has it")
    yield from _shares({"warmup": 0.05, "schedule": "wsd", **training}, path)
    batch, length = training.get("batch_tokens", 8192), data.get("max_length", 512)
    if is_finite(batch) and is_finite(length) and length >= 2 and batch >= 1 and batch % length:
        near = max(1, round(batch / length)) * length
        yield Problem((*path, "batch_tokens"), f"must be a multiple of data.max_length {length}, got {batch} ({near}?)")
    yield from _micro_batch(training.get("micro_batch"), batch=batch, length=length)
    tokens, every = training.get("tokens"), training.get("evaluate_every")
    if is_finite(tokens) and is_finite(every) and every >= tokens:
        yield _dead((*path, "evaluate_every"), f"in a run of {tokens} tokens")
    if is_finite(tokens) and is_finite(batch) and 1 <= tokens < batch:
        yield Problem((*path, "tokens"), f"must be at least one step of training.batch_tokens {batch}, got {tokens}")
    if data and "held_out" in data and data["held_out"] is None:
        for name in _given(training, "evaluate_every", "early_stop"):
            yield _dead((*path, name), "without held-out data")
    elif training.get("early_stop") is not None and training.get("evaluate_every") is None:
        yield Problem((*path, "early_stop"), "needs training.evaluate_every")


def _micro_batch(micro_batch: Any, *, batch: Any, length: Any) -> Iterator[Problem]:
    if is_finite(micro_batch) and is_finite(batch) and is_finite(length) and 2 <= length <= batch:
        n_windows = int(batch // length)
        if micro_batch > n_windows:
            message = f"must be at most {n_windows}, the windows of training.batch_tokens, got {micro_batch}"
            yield Problem(("training", "micro_batch"), message)


_OF_CODEC = {"threshold": "threshold", "k": "topk", "tail": "topk", "dtype": "dense", "draws": "threshold"}
_BUDGETS = ("bytes_per_token", "error", "threshold", "k")


def _cache(tree: Tree) -> Iterator[Problem]:
    cache, teacher = _section(tree, "cache"), _section(tree, "teacher")
    codec = cache.get("codec", "threshold")
    given = [name for name in _given(cache, *_BUDGETS) if _OF_CODEC.get(name, codec) == codec]
    if len(given) > 1:
        yield Problem(("cache",), f"needs at most one of {', '.join(_BUDGETS)}; found {' and '.join(given)}")
    for name, owner in _OF_CODEC.items():
        if cache.get(name) is not None and owner != codec:
            yield _dead(("cache", name), f"with codec {codec}: it belongs to {owner}")
    if codec == "topk" and not given:
        yield Problem(("cache", "k"), "is missing: topk needs k, bytes_per_token or error")
    if codec in ("hidden", "dense"):
        for name in _given(cache, "bytes_per_token", "error"):
            yield _dead(("cache", name), f"with codec {codec}: its size follows from the model")
        if cache.get("temperature") not in (None, 1, 1.0):
            yield _dead(("cache", "temperature"), f"with codec {codec}: it serves every temperature")
    if _section(tree, "data").get("missing_soft") == "drop" and teacher.get("cache") is None:
        yield _dead(("data", "missing_soft"), "without teacher.cache")


def _evaluation(tree: Tree) -> Iterator[Problem]:
    evaluation, data = _section(tree, "evaluation"), _section(tree, "data")
    yield from _sources(evaluation, ("evaluation",), name="out_of_domain", measured=True)
    nothing = "held_out" in data and data["held_out"] is None and not evaluation.get("out_of_domain")
    if evaluation.get("rows") is not None and nothing:
        yield _dead(("evaluation", "rows"), "without held-out or out-of-domain data")


def _code(value: Any, path: Path) -> Iterator[Problem]:
    """A recipe never lets a model folder run its own code."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name in ("trust_remote_code", "auto_map"):
            yield Problem((*path, name), "is refused: a recipe never makes a model run its own code")
        else:
            yield from _code(inner, (*path, str(name)))
