"""What no single field can know: choices that exclude each other, fields without effect, values that do not fit.

Works on the long form before its types are checked, so that these mistakes are listed together with all others;
what has the wrong type is passed over here, because its own field names it.
"""

from collections.abc import Iterator
from typing import Any  # a recipe before its check is whatever the user wrote

from tutelage.losses.names import DIVERGENCES
from tutelage.recipe import short, text_rules
from tutelage.recipe.problems import Path, Problem, dotted, is_finite
from tutelage.recipe.rules_features import broken_feature, broken_features
from tutelage.recipe.rules_models import broken_models
from tutelage.recipe.tree import (
    Tree,
    all_students,
    all_terms,
    dead,
    exactly_one,
    given_in,
    items_of,
    section_of,
    shares,
)


def broken(tree: Tree) -> Iterator[Problem]:
    """Every problem that spans several fields of a recipe in its long form."""
    yield from broken_models(tree)
    yield from _data(section_of(tree, "data"))
    yield from _conversations(tree)
    yield from _curriculum(tree)
    yield from _loss(tree)
    yield from _training(tree)
    yield from _cache(tree)
    yield from _evaluation(tree)
    yield from text_rules.broken(tree)
    yield from _code(tree, ())


def _data(data: Tree) -> Iterator[Problem]:
    yield from _sources(data, ("data",), name="sources", measured=False)
    if data.get("mix") == "tokens" and len(items_of(data, "sources")) == 1:
        yield dead(("data", "mix"), "with one source")
    held_out = section_of(data, "held_out")
    if not given_in(held_out, "share", "sources"):
        yield from exactly_one(data.get("held_out"), "share", "sources", path=("data", "held_out"))
    yield from _sources(held_out, ("data", "held_out"), name="sources", measured=True)
    sources = [s for _, s in items_of(data, "sources")]
    if sources and data.get("reasoning") == "think" and not any(s.get("answers") for s in sources):
        yield dead(("data", "reasoning"), "without a source of answers")


def _conversations(tree: Tree) -> Iterator[Problem]:
    """What only answers and messages have: of the sources that are trained on, and of those that are only measured."""
    data, evaluation = section_of(tree, "data"), section_of(tree, "evaluation")
    lists = [(data, "sources"), (section_of(data, "held_out"), "sources"), (evaluation, "out_of_domain")]
    sources = [source for section, name in lists for _, source in items_of(section, name)]
    if not items_of(data, "sources") or any(_has_answers(source) for source in sources):
        return
    if data.get("train_on") == "answers":
        yield Problem(("data", "train_on"), "answers needs a source with answers or messages; all have plain text")
    if data.get("chat_template") is not None:
        yield dead(("data", "chat_template"), "without a source that has answers or messages")


def _curriculum(tree: Tree) -> Iterator[Problem]:
    """Rows by the teacher's loss: somebody must have one that stays as it is, and a pool has no shares of tokens."""
    data, teacher = section_of(tree, "data"), section_of(tree, "teacher")
    if data.get("curriculum") is None:
        return
    path, otherwise = ("data", "curriculum"), "or leave it out"
    if data.get("mix") == "tokens":
        yield Problem(
            path, "and data.mix: tokens exclude each other: a part of the rows has not their shares; use rows"
        )
    if teacher.get("train") is not None or teacher.get("config") is not None:
        yield Problem(
            path, f"and teacher.train exclude each other: its loss changes; name a fixed teacher, {otherwise}"
        )
    elif not given_in(teacher, "model", "memory", "cache", "ensemble"):
        found = "the recipe has no teacher" if tree.get("teacher") is None else "text has none"
        yield Problem(
            path,
            f"needs a teacher's loss on the rows, and {found}; name teacher.model or teacher.cache, {otherwise}",
        )


def _has_answers(source: Tree) -> bool:
    named = given_in(section_of(source, "columns"), "answer", "messages", "conversations", "chosen")
    return bool(named or given_in(source, "memory", "answers"))


_KINDS = ("text", "jsonl", "parquet", "hub", "answers", "python_docs", "python_source", "memory")


_TOGETHER = (
    ["text"], ["prompt", "answer"], ["messages"], ["messages", "tools"], ["conversations"], ["prompt", "chosen"],
    ["chosen"],
)  # fmt: skip


def _sources(section: Tree, path: Path, *, name: str, measured: bool) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for i, source in items_of(section, name):
        here = (*path, name, i)
        yield from exactly_one(source, *_KINDS, path=here)
        if source.get("weight") not in (None, 1) and (measured or len(section[name]) == 1):
            why = "where nothing is trained: every row is measured" if measured else "with one source"
            yield dead((*here, "weight"), why)
        called = source.get("name")
        if isinstance(called, str) and names.setdefault(called, i) != i:
            yield Problem((*here, "name"), f"repeats {name}[{names[called]}].name {called!r}; tables need two names")
        if source.get("separator") is not None and source.get("text") is None:
            yield dead((*here, "separator"), "without text")
        columns = section_of(source, "columns")
        for field in given_in(source, "subset", "split", "revision"):
            if source.get("hub") is None:
                yield dead((*here, field), "without hub")
        if columns and not short.has_columns(source):
            yield dead((*here, "columns"), "without jsonl, parquet or hub")
        elif columns:
            yield from _columns(columns, (*here, "columns"))


def _columns(columns: Tree, path: Path) -> Iterator[Problem]:
    given = given_in(columns, "text", "prompt", "answer", "messages", "conversations", "chosen", "tools")
    if given and given not in _TOGETHER:
        known = "text, or prompt and answer, or messages (and tools), or conversations, or prompt and chosen, or chosen"
        yield Problem(path, f"must name {known}; found {' and '.join(given)}")


def _loss(tree: Tree) -> Iterator[Problem]:
    yield from _terms(items_of(tree, "loss"), ("loss",))
    for path, student in all_students(tree):
        yield from _terms(items_of(student, "loss"), (*path, "loss"))
    for path, term in all_terms(tree):
        yield from _source(tree, term, path)
    yield from broken_features(tree)
    terms = all_terms(tree)
    if tree.get("control") is True and terms and all(t.get("cross_entropy") == "ground_truth" for _, t in terms):
        yield dead(("control",), "when the loss is cross-entropy on ground truth: this run is the control")


def _learns_truth(tree: Tree, student: Any) -> bool:
    own = student if isinstance(student, dict) and student.get("loss") is not None else tree
    return any(term.get("cross_entropy") == "ground_truth" for _, term in items_of(own, "loss"))


_KINDS_OF_TERM = ("divergence", "cross_entropy", "features")


def _terms(terms: list[tuple[int, Tree]], path: Path) -> Iterator[Problem]:
    seen: dict[tuple[str, str], int] = {}
    for i, term in terms:
        here = (*path, i)
        yield from exactly_one(term, *_KINDS_OF_TERM, path=here)
        yield from _term(term, here)
        yield from broken_feature(term, here)
        name, source = next((term[kind] for kind in given_in(term, *_KINDS_OF_TERM)), None), str(term.get("teacher"))
        if isinstance(name, str) and seen.setdefault((name, source), i) != i:
            first = dotted((*path, seen[name, source]))
            yield Problem(here, f"repeats {first} ({name}); one term with the sum of the weights is the same")
    constants = [_constant(term.get("weight")) for _, term in terms]
    if constants and all(c == 0 for c in constants):
        yield Problem(path, "has only terms of weight 0: nothing would be learned")


def _source(tree: Tree, term: Tree, path: Path) -> Iterator[Problem]:
    """Whom a term learns from, and how far it trusts in it."""
    source, students = term.get("teacher"), section_of(tree, "students")
    trains = isinstance(section_of(tree, "teacher").get("train"), dict)
    if source is not None and not isinstance(source, str):
        return  # its own field says what is wrong
    if source is not None and term.get("features") is None:
        known = ", ".join(students) or "there are none"
        if term.get("cross_entropy") == "ground_truth":
            yield dead((*path, "teacher"), "with ground_truth")
        elif source not in students:
            yield Problem((*path, "teacher"), f"must be one of students ({known}), got {source!r}")
        elif path[:2] == ("students", source):
            yield Problem((*path, "teacher"), f"is the student itself; name another of students ({known})")
    trust = term.get("trust", "always")
    if trust == "always":
        return
    if others := given_in(term, "cross_entropy", "features"):
        yield dead((*path, "trust"), f"with {others[0]}")
    elif trust == "progress" and source is None and not trains:
        yield dead((*path, "trust"), "with a teacher that does not train: its progress is none")
    elif trust == "progress" and source in students and not _learns_truth(tree, students[source]):
        what = f"has nothing to follow: students.{source} has no cross_entropy on ground_truth"
        yield Problem((*path, "trust"), what)
    elif trust == "per_token" and source is None and section_of(tree, "teacher").get("cache") is not None:
        yield Problem((*path, "trust"), "per_token asks the teacher about the true token, and a cache need not hold it")


def _term(term: Tree, path: Path) -> Iterator[Problem]:
    divergence = term.get("divergence")
    if term.get("cross_entropy") is not None and divergence is None:
        for name in given_in(term, "temperature", "beta", "alpha"):
            yield dead((*path, name), "with cross_entropy")
    if isinstance(divergence, str) and divergence in DIVERGENCES:
        for name in given_in(term, "beta", "alpha"):
            if name not in DIVERGENCES[divergence]:
                yield dead((*path, name), f"with {divergence}")
    yield from _schedule(section_of(term, "weight"), (*path, "weight"), positive=False)
    yield from _schedule(section_of(term, "temperature"), (*path, "temperature"), positive=True)


def _schedule(schedule: Tree, path: Path, *, positive: bool) -> Iterator[Problem]:
    kind = schedule.get("schedule")
    for name in ("start", "end"):
        value = schedule.get(name)
        if is_finite(value) and (value <= 0 if positive else value < 0):
            yield Problem((*path, name), f"must be {'> 0' if positive else '>= 0'}, got {value}")
    if kind == "constant":
        if schedule.get("end") is not None:
            yield dead((*path, "end"), "with schedule constant")
    elif isinstance(kind, str) and schedule.get("end") is None:
        yield Problem((*path, "end"), f"is missing: {kind} goes from start to end")
    if kind != "wsd" and schedule.get("decay") is not None:
        yield dead((*path, "decay"), f"with schedule {kind}: only wsd has it")
    if positive and is_finite(schedule.get("warmup")) and schedule["warmup"] > 0:
        yield Problem((*path, "warmup"), "is for weights: a temperature cannot rise from 0; use linear")
    yield from shares(schedule, path)


def _constant(weight: Any) -> float | None:
    """The weight of a term, if it never changes."""
    if weight is None:
        return 1.0
    if isinstance(weight, dict) and weight.get("schedule") == "constant" and is_finite(weight.get("start")):
        return float(weight["start"])
    return None


def _training(tree: Tree) -> Iterator[Problem]:
    training, data = section_of(tree, "training"), section_of(tree, "data")
    path: Path = ("training",)
    yield from exactly_one(tree.get("training"), "tokens", "steps", "epochs", path=path)
    schedule = training.get("schedule", "wsd")
    if training.get("decay") is not None and schedule in ("cosine", "constant"):
        yield dead((*path, "decay"), f"with schedule {schedule}: only wsd has it")
    yield from shares({"warmup": 0.05, "schedule": "wsd", **training}, path)
    batch, length = training.get("batch_tokens", 8192), data.get("max_length", 512)
    if is_finite(batch) and is_finite(length) and length >= 2 and batch >= 1 and batch % length:
        near = max(1, round(batch / length)) * length
        yield Problem((*path, "batch_tokens"), f"must be a multiple of data.max_length {length}, got {batch} ({near}?)")
    yield from _micro_batch(training.get("micro_batch"), batch=batch, length=length)
    tokens, every = training.get("tokens"), training.get("evaluate_every")
    if is_finite(tokens) and is_finite(every) and every >= tokens:
        yield dead((*path, "evaluate_every"), f"in a run of {tokens} tokens")
    if is_finite(tokens) and is_finite(batch) and 1 <= tokens < batch:
        yield Problem((*path, "tokens"), f"must be at least one step of training.batch_tokens {batch}, got {tokens}")
    if data and "held_out" in data and data["held_out"] is None:
        for name in given_in(training, "evaluate_every", "early_stop"):
            yield dead((*path, name), "without held-out data")
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
    cache, teacher = section_of(tree, "cache"), section_of(tree, "teacher")
    codec = cache.get("codec", "threshold")
    given = [name for name in given_in(cache, *_BUDGETS) if _OF_CODEC.get(name, codec) == codec]
    if len(given) > 1:
        yield Problem(("cache",), f"needs at most one of {', '.join(_BUDGETS)}; found {' and '.join(given)}")
    for name, owner in _OF_CODEC.items():
        if cache.get(name) is not None and owner != codec:
            yield dead(("cache", name), f"with codec {codec}: it belongs to {owner}")
    if codec == "topk" and not given:
        yield Problem(("cache", "k"), "is missing: topk needs k, bytes_per_token or error")
    if codec in ("hidden", "dense"):
        for name in given_in(cache, "bytes_per_token", "error"):
            yield dead(("cache", name), f"with codec {codec}: its size follows from the model")
        if cache.get("temperature") not in (None, 1, 1.0):
            yield dead(("cache", "temperature"), f"with codec {codec}: it serves every temperature")
    if section_of(tree, "data").get("missing_soft") == "drop" and teacher.get("cache") is None:
        yield dead(("data", "missing_soft"), "without teacher.cache")
    if cache.get("rows") == "run":
        yield from _rows_of_run(tree)


def _rows_of_run(tree: Tree) -> Iterator[Problem]:
    """Which rows a run reads must follow from the recipe alone."""
    data, path = section_of(tree, "data"), ("cache", "rows")
    if data.get("missing_soft") == "drop":
        yield Problem(
            path, "run and data.missing_soft: drop exclude each other: without the dropped rows others are read"
        )
    if data.get("curriculum") is not None:
        yield Problem(
            path, "run and data.curriculum exclude each other: the order needs the teacher's loss on all rows"
        )


def _evaluation(tree: Tree) -> Iterator[Problem]:
    evaluation, data = section_of(tree, "evaluation"), section_of(tree, "data")
    yield from _sources(evaluation, ("evaluation",), name="out_of_domain", measured=True)
    nothing = "held_out" in data and data["held_out"] is None and not evaluation.get("out_of_domain")
    if evaluation.get("rows") is not None and nothing:
        yield dead(("evaluation", "rows"), "without held-out or out-of-domain data")


def _code(value: Any, path: Path) -> Iterator[Problem]:
    """A recipe never lets a model folder run its own code."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name in ("trust_remote_code", "auto_map"):
            yield Problem((*path, name), "is refused: a recipe never makes a model run its own code")
        else:
            yield from _code(inner, (*path, str(name)))
