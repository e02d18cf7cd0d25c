"""What no single field can know of who teaches and who learns; see `rules.py`."""

from collections.abc import Iterator

from tutelage.recipe.fields import is_local
from tutelage.recipe.problems import Path, Problem, dotted, is_finite
from tutelage.recipe.tree import (
    COPIES,
    STARTS,
    Tree,
    all_students,
    all_terms,
    dead,
    exactly_one,
    given_in,
    section_of,
    shares,
)
from tutelage.roles import PREFIXES, RESERVED, SUFFIXES


def broken_models(tree: Tree) -> Iterator[Problem]:
    """Every problem of `teacher`, `student` and `students` that spans several fields."""
    yield from _teacher(tree)
    yield from _student(tree)


def _teacher(tree: Tree) -> Iterator[Problem]:
    teacher, path = section_of(tree, "teacher"), ("teacher",)
    model, is_cached = teacher.get("model"), teacher.get("cache") is not None
    if not given_in(teacher, "cache", "api", "answers", "writers"):
        yield from exactly_one(tree.get("teacher"), "model", "ensemble", "config", "memory", path=path)
    elif is_cached and model is None and teacher.get("memory") is None:
        yield from _without_weights(tree, teacher)
    if teacher.get("revision") is not None and (teacher.get("memory") or (isinstance(model, str) and is_local(model))):
        yield dead((*path, "revision"), "with a model that is not a hub id")
    yield from _trained_teacher(tree, teacher)
    yield from _ensemble(tree, teacher)
    yield from _quantized(tree, teacher)
    yield from _spread(tree, teacher)
    if tree.get("teacher") is not None:
        return
    asking = [dotted(path) for path, term in all_terms(tree) if _asks_teacher(term)]
    asking += [
        dotted((*path, name)) for path, student in all_students(tree) for name in given_in(student, *COPIES, "config")
    ]
    if asking:
        yield Problem(("teacher",), f"is missing: {asking[0]} needs it")


def _ensemble(tree: Tree, teacher: Tree) -> Iterator[Problem]:
    if teacher.get("ensemble") is None:
        return
    for name in given_in(teacher, "cache", "train", "revision"):
        why = {
            "cache": "label each and merge the caches",
            "train": "one teacher trains",
            "revision": "each has its own",
        }
        yield Problem(("teacher", name), f"and teacher.ensemble exclude each other: {why[name]}")
    for path, student in all_students(tree):
        for name in given_in(student, *COPIES):
            yield Problem((*path, name), "copies layers of one teacher, and there are several; give model or config")


def _quantized(tree: Tree, teacher: Tree) -> Iterator[Problem]:
    """Rounded weights answer, and that is all they can do; and only weights that are loaded can be rounded."""
    if teacher.get("quantize") is None:
        return
    if isinstance(teacher.get("train"), dict):
        yield Problem(("teacher", "quantize"), "and teacher.train exclude each other: rounded weights cannot learn")
    elif teacher.get("answers") is not None or teacher.get("model") is None:
        yield dead(("teacher", "quantize"), "but with a teacher.model that is asked for its distributions")
    for path, student in all_students(tree):
        for name in given_in(student, *COPIES):
            yield Problem(
                (*path, name),
                f"copies weights of the teacher, and teacher.quantize rounds them; give {dotted((*path, 'model'))}",
            )


def _spread(tree: Tree, teacher: Tree) -> Iterator[Problem]:
    """A teacher whose parts lie in several places answers, and that is all it can do."""
    path = ("teacher", "device_map")
    if teacher.get("device_map") is None:
        return
    if teacher.get("model") is None or teacher.get("answers") is not None:
        yield dead(path, "but with a teacher.model that is asked for its distributions")
    elif isinstance(teacher.get("train"), dict):
        yield Problem(path, "and teacher.train exclude each other: a teacher that learns is whole on one device")
    elif teacher.get("quantize") is not None:
        yield Problem(path, "and teacher.quantize exclude each other: rounded weights lie on one device; choose one")
    if teacher.get("device") not in (None, "auto"):
        yield dead(("teacher", "device"), "with teacher.device_map: that says where the parts lie")
    for student, section in all_students(tree):
        for name in given_in(section, *COPIES):
            yield Problem(
                (*student, name),
                "copies weights of the teacher, and with teacher.device_map they are not in memory; give "
                f"{dotted((*student, 'model'))}, or make the student of it first with device_map left out",
            )


def _trained_teacher(tree: Tree, teacher: Tree) -> Iterator[Problem]:
    train, path = teacher.get("train"), ("teacher", "train")
    if teacher.get("config") is not None:
        if train is None:
            yield Problem(path, "is missing: a teacher from nothing (teacher.config) has to learn")
        if teacher.get("tokenizer") is None:
            yield Problem(("teacher", "tokenizer"), "is missing: name the model whose tokenizer and config it takes")
        for name in given_in(teacher, "cache", "revision"):
            yield dead(("teacher", name), "with a teacher from nothing")
    elif teacher.get("tokenizer") is not None:
        yield dead(("teacher", "tokenizer"), "without teacher.config: a model has its own")
    if not isinstance(train, dict):
        return
    if teacher.get("answers") is not None and not given_in(teacher, "model", "config", "memory"):
        yield Problem(path, "needs the weights of a teacher; answers are text: name teacher.model, or leave train out")
    if teacher.get("cache") is not None and teacher.get("config") is None:
        why = "what was stored of a teacher does not change while it trains; leave cache or train out"
        yield Problem(path, f"and teacher.cache exclude each other: {why}")
    if teacher.get("dtype") not in (None, "auto"):
        yield dead(("teacher", "dtype"), "with teacher.train: it computes as its students do, see training.precision")
    training = {k: v for k, v in section_of(tree, "training").items() if v is not None}
    own = {"schedule": "wsd", "warmup": 0.05, **training, **{k: v for k, v in train.items() if v is not None}}
    if train.get("decay") is not None and own["schedule"] in ("cosine", "constant"):
        yield dead((*path, "decay"), f"with schedule {own['schedule']}: only wsd has it")
    if own["schedule"] == "wsd" and given_in(train, "warmup", "decay", "schedule"):
        yield from shares(own, path)


def _without_weights(tree: Tree, teacher: Tree) -> Iterator[Problem]:
    """A cache alone: what would need the teacher itself."""
    for path, student in all_students(tree):
        for name in given_in(student, *COPIES)[:1]:
            why = f"{dotted((*path, name))} copies layers of the teacher, and a cache holds no weights"
            yield Problem(
                ("teacher", "model"),
                f"is missing: {why}; name the model beside the cache, or give {dotted((*path, 'model'))}",
            )
    for name in given_in(teacher, "revision", "dtype", "device"):  # device_map: see `_spread`
        if teacher[name] not in ("auto",):
            yield dead(("teacher", name), "with a cache alone: no teacher runs")


def _asks_teacher(term: Tree) -> bool:
    """Whether a term learns from the recipe's teacher (not from another student, and not from the truth)."""
    return term.get("cross_entropy") != "ground_truth" and term.get("teacher") is None


def _student(tree: Tree) -> Iterator[Problem]:
    given = [name for name in ("student", "students") if tree.get(name) is not None]
    if len(given) != 1:
        found = "found both" if given else "found none"
        yield Problem(("student",), f"is missing: one student, or students: several by name; {found}" if not given else
                      f"and students exclude each other; {found}")  # fmt: skip
    smaller = section_of(tree, "training").get("save_dtype")
    for path, student in all_students(tree):
        yield from _one_student(student, path)
        if smaller is not None and student.get("quantize") == "int8":
            why = f"an int8 weight has up to 15 significant bits, and {smaller} keeps 8; leave one out, or take int4"
            yield Problem((*path, "quantize"), f"and training.save_dtype exclude each other: {why}")
    yield from _students(tree)


def _one_student(student: Tree, path: Path) -> Iterator[Problem]:
    kinds = ("layers", "model", "config", "memory") if given_in(student, *COPIES) == [*COPIES] else STARTS
    yield from exactly_one(student, *kinds, path=path)
    width = student.get("width")
    if isinstance(width, dict) and not any(value is not None for value in width.values()):
        yield Problem((*path, "width"), "names nothing to narrow; give hidden, mlp, heads or key_value_heads")
    if student.get("config") is not None:
        for name in given_in(student, "init", "lora"):
            yield dead((*path, name), "with config: its weights are random, and all of them have to learn")
    if student.get("lora") is not None and student.get("quantize") is not None:
        why = "what is merged at the end would be rounded unseen; leave one out"
        yield Problem((*path, "quantize"), f"and {dotted((*path, 'lora'))} exclude each other: {why}")
    model = student.get("model")
    if student.get("revision") is not None and not (isinstance(model, str) and not is_local(model)):
        yield dead((*path, "revision"), f"without a hub id in {dotted((*path, 'model'))}")
    layers = section_of(student, "layers")
    yield from exactly_one(student.get("layers"), "important", "evenly", "listed", path=(*path, "layers"))
    listed = layers.get("listed")
    if isinstance(listed, list) and all(is_finite(i) for i in listed) and listed != sorted(set(listed)):
        yield Problem((*path, "layers", "listed"), f"must rise, each layer once, got {listed}")


def _students(tree: Tree) -> Iterator[Problem]:
    """A family: names that tables and folders can tell apart, a loss for everyone, one that begins at once."""
    pupils = section_of(tree, "students")
    folded: dict[str, str] = {}
    for name in pupils:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            yield Problem(("students", name), f"is {other} where file names have no case; choose another")
        if name in RESERVED or name.startswith(PREFIXES) or name.endswith(SUFFIXES):
            yield Problem(
                ("students", name),
                f"is a name that a run uses itself ({', '.join((*RESERVED, *PREFIXES, *SUFFIXES))}); choose another",
            )
    lacking = [name for name, pupil in pupils.items() if isinstance(pupil, dict) and pupil.get("loss") is None]
    if tree.get("loss") is None and (lacking or not pupils):
        yield Problem(
            ("loss",), f"is missing: {'students.' + lacking[0] if lacking else 'student'} has none of its own"
        )
    if tree.get("loss") is not None and pupils and not lacking:
        yield dead(("loss",), "where every student has a loss of its own")
    late = [name for name, pupil in pupils.items() if isinstance(pupil, dict) and pupil.get("start_at_step")]
    if pupils and len(late) == len(pupils) and not isinstance(section_of(tree, "teacher").get("train"), dict):
        yield Problem(
            ("students", late[0], "start_at_step"), "leaves nobody who trains from step 0; leave it out of one"
        )
