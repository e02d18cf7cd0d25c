"""What no single field can know: choices that exclude each other, fields without effect, values that do not fit.

Works on the long form before its types are checked, so that these mistakes are listed together with all others;
what has the wrong type is passed over here, because its own field names it.
"""

from collections.abc import Iterator
from typing import Any  # a recipe before its check is whatever the user wrote

from tutelage.losses.names import DIVERGENCES
from tutelage.recipe.fields import is_local
from tutelage.recipe.problems import Path, Problem, dotted, is_finite, section_at
from tutelage.roles import PREFIXES, RESERVED

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
    teacher, path = _section(tree, "teacher"), ("teacher",)
    model, is_cached = teacher.get("model"), teacher.get("cache") is not None
    if not is_cached:
        yield from _exactly_one(tree.get("teacher"), "model", "config", "memory", path=path)
    elif model is None and teacher.get("memory") is None:
        yield from _without_weights(tree, teacher)
    if teacher.get("revision") is not None and (teacher.get("memory") or (isinstance(model, str) and is_local(model))):
        yield _dead((*path, "revision"), "with a model that is not a hub id")
    yield from _trained_teacher(teacher)
    if tree.get("teacher") is not None:
        return
    asking = [dotted(path) for path, term in _all_terms(tree) if _asks_teacher(term)]
    asking += [
        dotted((*path, name)) for path, student in _all_students(tree) for name in _given(student, "layers", "config")
    ]
    if asking:
        yield Problem(("teacher",), f"is missing: {asking[0]} needs it")


def _trained_teacher(teacher: Tree) -> Iterator[Problem]:
    train, path = teacher.get("train"), ("teacher", "train")
    if teacher.get("config") is not None:
        if train is None:
            yield Problem(path, "is missing: a teacher from nothing (teacher.config) has to learn")
        if teacher.get("tokenizer") is None:
            yield Problem(("teacher", "tokenizer"), "is missing: name the model whose tokenizer and config it takes")
        for name in _given(teacher, "cache", "revision"):
            yield _dead(("teacher", name), "with a teacher from nothing")
    elif teacher.get("tokenizer") is not None:
        yield _dead(("teacher", "tokenizer"), "without teacher.config: a model has its own")
    if not isinstance(train, dict):
        return
    if teacher.get("cache") is not None and teacher.get("config") is None:
        why = "what was stored of a teacher does not change while it trains; leave cache or train out"
        yield Problem(path, f"and teacher.cache exclude each other: {why}")
    if teacher.get("dtype") not in (None, "auto"):
        yield _dead(("teacher", "dtype"), "with teacher.train: it computes as its students do, see training.precision")
    if train.get("decay") is not None and train.get("schedule") in ("cosine", "constant"):
        yield _dead((*path, "decay"), f"with schedule {train['schedule']}: only wsd has it")
    yield from _shares({"warmup": 0.05, **{k: v for k, v in train.items() if v is not None}}, path)


def _without_weights(tree: Tree, teacher: Tree) -> Iterator[Problem]:
    """A cache alone: what would need the teacher itself."""
    for path, student in _all_students(tree):
        if student.get("layers") is not None:
            why = f"{dotted((*path, 'layers'))} copies layers of the teacher, and a cache holds no weights"
            yield Problem(
                ("teacher", "model"),
                f"is missing: {why}; name the model beside the cache, or give {dotted((*path, 'model'))}",
            )
    for name in _given(teacher, "revision", "dtype", "device"):
        if teacher[name] not in ("auto",):
            yield _dead(("teacher", name), "with a cache alone: no teacher runs")


def _all_students(tree: Tree) -> list[tuple[Path, Tree]]:
    """Each student with its path, the one of `student` or those of `students`."""
    alone = tree.get("student")
    found: list[tuple[Path, Tree]] = [(("student",), alone)] if isinstance(alone, dict) else []
    return found + [(("students", n), s) for n, s in _section(tree, "students").items() if isinstance(s, dict)]


def _all_terms(tree: Tree) -> list[tuple[Path, Tree]]:
    """Each term of a loss with its path: the recipe's, then those that students have of their own."""
    found: list[tuple[Path, Tree]] = [(("loss", i), term) for i, term in _items(tree, "loss")]
    for path, student in _all_students(tree):
        found += [((*path, "loss", i), term) for i, term in _items(student, "loss")]
    return found


def _asks_teacher(term: Tree) -> bool:
    """Whether a term learns from the recipe's teacher (not from another student, and not from the truth)."""
    return term.get("cross_entropy") != "ground_truth" and term.get("teacher") is None


def _student(tree: Tree) -> Iterator[Problem]:
    given = [name for name in ("student", "students") if tree.get(name) is not None]
    if len(given) != 1:
        found = "found both" if given else "found none"
        yield Problem(("student",), f"is missing: one student, or students: several by name; {found}" if not given else
                      f"and students exclude each other; {found}")  # fmt: skip
    for path, student in _all_students(tree):
        yield from _one_student(student, path)
    yield from _students(tree)


def _one_student(student: Tree, path: Path) -> Iterator[Problem]:
    yield from _exactly_one(student, "layers", "model", "config", "memory", path=path)
    model = student.get("model")
    if student.get("revision") is not None and not (isinstance(model, str) and not is_local(model)):
        yield _dead((*path, "revision"), f"without a hub id in {dotted((*path, 'model'))}")
    layers = _section(student, "layers")
    yield from _exactly_one(student.get("layers"), "important", "evenly", "listed", path=(*path, "layers"))
    listed = layers.get("listed")
    if isinstance(listed, list) and all(is_finite(i) for i in listed) and listed != sorted(set(listed)):
        yield Problem((*path, "layers", "listed"), f"must rise, each layer once, got {listed}")


def _students(tree: Tree) -> Iterator[Problem]:
    """A family: names that tables and folders can tell apart, a loss for everyone, one that begins at once."""
    pupils = _section(tree, "students")
    for name in pupils:
        if name in RESERVED or name.startswith(PREFIXES):
            yield Problem(
                ("students", name),
                f"is a name that a run uses itself ({', '.join((*RESERVED, *PREFIXES))}); choose another",
            )
    lacking = [name for name, pupil in pupils.items() if isinstance(pupil, dict) and pupil.get("loss") is None]
    if tree.get("loss") is None and (lacking or not pupils):
        yield Problem(
            ("loss",), f"is missing: {'students.' + lacking[0] if lacking else 'student'} has none of its own"
        )
    if tree.get("loss") is not None and pupils and not lacking:
        yield _dead(("loss",), "where every student has a loss of its own")
    late = [name for name, pupil in pupils.items() if isinstance(pupil, dict) and pupil.get("start_at_step")]
    if pupils and len(late) == len(pupils) and not isinstance(_section(tree, "teacher").get("train"), dict):
        yield Problem(
            ("students", late[0], "start_at_step"), "leaves nobody who trains from step 0; leave it out of one"
        )


def _data(data: Tree) -> Iterator[Problem]:
    yield from _sources(data, ("data",), name="sources", measured=False)
    held_out = _section(data, "held_out")
    yield from _exactly_one(data.get("held_out"), "share", "sources", path=("data", "held_out"))
    yield from _sources(held_out, ("data", "held_out"), name="sources", measured=True)
    sources = [s for _, s in _items(data, "sources")]
    if not sources or any(_has_answers(s) for s in sources):
        return
    if data.get("train_on") == "answers":
        yield Problem(("data", "train_on"), "answers needs a source with answers or messages; all have plain text")
    if data.get("chat_template") is not None:
        yield _dead(("data", "chat_template"), "without a source that has answers or messages")


def _has_answers(source: Tree) -> bool:
    return bool(_given(_section(source, "columns"), "answer", "messages")) or source.get("memory") is not None


def _sources(section: Tree, path: Path, *, name: str, measured: bool) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for i, source in _items(section, name):
        here = (*path, name, i)
        yield from _exactly_one(source, "text", "jsonl", "python_docs", "python_source", "memory", path=here)
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
    yield from _terms(_items(tree, "loss"), ("loss",))
    for path, student in _all_students(tree):
        yield from _terms(_items(student, "loss"), (*path, "loss"))
    for path, term in _all_terms(tree):
        yield from _source(tree, term, path)
    terms = _all_terms(tree)
    if tree.get("control") is True and terms and all(t.get("cross_entropy") == "ground_truth" for _, t in terms):
        yield _dead(("control",), "when the loss is cross-entropy on ground truth: this run is the control")


def _terms(terms: list[tuple[int, Tree]], path: Path) -> Iterator[Problem]:
    seen: dict[tuple[str, Any], int] = {}
    for i, term in terms:
        here = (*path, i)
        yield from _exactly_one(term, "divergence", "cross_entropy", path=here)
        yield from _term(term, here)
        name = term.get("divergence") or term.get("cross_entropy")
        if isinstance(name, str) and seen.setdefault((name, term.get("teacher")), i) != i:
            first = dotted((*path, seen[name, term.get("teacher")]))
            yield Problem(here, f"repeats {first} ({name}); one term with the sum of the weights is the same")
    constants = [_constant(term.get("weight")) for _, term in terms]
    if constants and all(c == 0 for c in constants):
        yield Problem(path, "has only terms of weight 0: nothing would be learned")


def _source(tree: Tree, term: Tree, path: Path) -> Iterator[Problem]:
    """Whom a term learns from, and how far it trusts in it."""
    source, students = term.get("teacher"), _section(tree, "students")
    trains = isinstance(_section(tree, "teacher").get("train"), dict)
    if source is not None:
        known = ", ".join(students) or "there are none"
        if term.get("cross_entropy") == "ground_truth":
            yield _dead((*path, "teacher"), "with ground_truth")
        elif source not in students:
            yield Problem((*path, "teacher"), f"must be one of students ({known}), got {source!r}")
        elif path[:2] == ("students", source):
            yield Problem((*path, "teacher"), f"is the student itself; name another of students ({known})")
    trust = term.get("trust", "always")
    if trust == "always":
        return
    if term.get("cross_entropy") is not None:
        yield _dead((*path, "trust"), "with cross_entropy")
    elif trust == "progress" and source is None and not trains:
        yield _dead((*path, "trust"), "with a teacher that does not train: its progress is none")
    elif trust == "per_token" and source is None and _section(tree, "teacher").get("cache") is not None:
        yield Problem((*path, "trust"), "per_token asks the teacher about the true token, and a cache need not hold it")


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
