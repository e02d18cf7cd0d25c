"""The short forms of a recipe, written out: plain functions from what a user may write to what a section holds.

Each leaves the long form alone, so they may be applied twice, and leaves alone what makes no sense, so that the
section's own check names the mistake.
"""

from typing import Any  # a recipe before its check is whatever the user wrote

from tutelage.recipe.short_terms import complete_decay, layer_pairs, loss, schedule

WITH_COLUMNS = ("jsonl", "parquet", "hub")  # kinds of source
_COLUMNS = ("text", "prompt", "answer", "messages", "conversations", "chosen", "tools")
TRAINED_TEACHER_WARMUP = 0.2  # of the run, where the teacher starts from given weights; no measurement chose it yet
TRUST_FROM_NOTHING = "progress"  # the rule that did least harm: benchmarks/codistill_quality.py, docs/results.md


def teacher(value: Any) -> Any:
    """`ID` is `{model: ID}`."""
    return {"model": value} if isinstance(value, str) else value


def student(value: Any) -> Any:
    """`ID` is `{model: ID}`."""
    return {"model": value} if isinstance(value, str) else value


def train(value: Any) -> Any:
    """`true` is a section of defaults, `false` is none."""
    return {} if value is True else None if value is False else value


def writes(value: Any) -> Any:
    """`32` is `{prompts: 32}`, `true` a section of defaults, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    return {"prompts": value} if isinstance(value, int) else value


def layers(value: Any) -> Any:
    """`20` is `{important: 20}`; `[0, 2, 4]` is `{listed: [0, 2, 4]}`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"important": value}
    return {"listed": value} if isinstance(value, list | tuple) else value


def width(value: Any) -> Any:
    """`0.5` is that share of channels, neurons and heads."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 1:  # a number of what, else?
        return {"hidden": value, "mlp": value, "heads": value}
    return value


def init(value: Any) -> Any:
    """`0.3` is `{random: 0.3}`."""
    return {"random": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def lora(value: Any) -> Any:
    """`16` is `{rank: 16}`, `true` a section of defaults, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    return {"rank": value} if isinstance(value, int) else value


def globs(value: Any) -> Any:
    """One pattern is a list of one."""
    return [value] if isinstance(value, str) else value


def held_out(value: Any) -> Any:
    """A number is a share; a list is sources."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"share": value}
    return {"sources": value} if isinstance(value, list | tuple) else value


def curriculum(value: Any) -> Any:
    """`teacher_loss` is `{by: teacher_loss}`."""
    return {"by": value} if isinstance(value, str) else value


def source(value: Any) -> Any:
    """`python_docs` is `{python_docs: true}`, as is `python_source`; columns beside `jsonl:` and the like move."""
    if value in ("python_docs", "python_source"):
        return {value: True}
    if not isinstance(value, dict) or not has_columns(value) or not isinstance(value.get("columns", {}), dict):
        return value
    if "hub" in value:
        value = {"split": "train", **value}
    moved = {k: v for k, v in value.items() if k in _COLUMNS}
    rest = {k: v for k, v in value.items() if k not in _COLUMNS}
    return {**rest, "columns": {**moved, **rest.get("columns", {})}} if moved else rest


def sources(value: Any) -> Any:
    """One source is a list of one."""
    if isinstance(value, str | dict):
        value = [value]
    return [source(item) for item in value] if isinstance(value, list | tuple) else value


def complete_sources(value: Any) -> Any:
    """Sources whose JSON lines have a field for the text unless columns are named."""
    value = sources(value)
    if not isinstance(value, list):
        return value
    plain = {"columns": {"text": "text"}}
    return [{**item, **plain} if _has_no_columns(item) else item for item in value]


def complete_prompts(value: Any) -> Any:
    """Sources of prompts: a file name stands for its lines; they have a field for the prompt unless one is named."""
    value = sources([value] if isinstance(value, str) else value)
    if not isinstance(value, list):
        return value
    items = [{"jsonl": [i]} if isinstance(i, str) and i.endswith((".jsonl", ".json")) else i for i in value]
    plain = {"columns": {"prompt": "prompt"}}
    return [{**i, **plain} if _has_no_columns(i) and i.get("template") is None else i for i in items]


def verify(value: Any) -> Any:
    """`number` is `{number: true}`."""
    return {value: True} if isinstance(value, str) else value


def deduplicate(value: Any) -> Any:
    """`true` is a section of defaults."""
    return {} if value is True else value


def language(value: Any) -> Any:
    """`en` is `{only: [en]}`, and so is a list."""
    value = [value] if isinstance(value, str) else value
    return {"only": value} if isinstance(value, list | tuple) else value


def best(value: Any) -> Any:
    """The short form of its verifier."""
    return _each(value, verify=verify) if isinstance(value, dict) else value


def step(value: Any) -> Any:
    """`deduplicate` has its defaults, `{deduplicate: true}`; of `length` and `repetition` the defaults."""
    if isinstance(value, str):
        return {value: {} if value in ("length", "repetition") else True}
    return value


def select(value: Any) -> Any:
    """One step is a list of one; unfinished answers are dropped first unless `complete` is named."""
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    steps = [step(item) for item in value]
    named = any(isinstance(item, dict) and "complete" in item for item in steps)
    return steps if named else [{"complete": True}, *steps]


def _has_no_columns(item: Any) -> bool:
    return isinstance(item, dict) and has_columns(item) and item.get("columns") is None


def has_columns(source: dict[str, Any]) -> bool:
    """Whether a source's rows are made of columns."""
    return any(source.get(kind) is not None for kind in WITH_COLUMNS)


def complete_training(value: Any) -> Any:
    """The learning rate's schedule is `wsd` unless something else is said."""
    return complete_decay({"schedule": "wsd", **_tracked(value)}) if isinstance(value, dict) else value


def _tracked(value: dict[str, Any]) -> dict[str, Any]:
    """`tensorboard: true` is `track: [tensorboard]`."""
    if not isinstance(value.get("tensorboard"), bool):
        return value
    rest = {name: field for name, field in value.items() if name != "tensorboard"}
    named = globs(rest.get("track", []))
    if not value["tensorboard"] or not isinstance(named, list | tuple):
        return rest
    return {**rest, "track": [*named, *([] if "tensorboard" in named else ["tensorboard"])]}


_OF_CODEC: dict[str, dict[str, Any]] = {
    "threshold": {"draws": 1},
    "topk": {"tail": True},
    "dense": {"dtype": "float16"},
}


def complete_cache(value: Any) -> Any:
    """The defaults that depend on the codec; threshold has a budget of 16 bytes a token unless another is named."""
    if not isinstance(value, dict):
        return value
    codec = value.get("codec", "threshold")
    filled = dict(_OF_CODEC.get(codec, {})) if isinstance(codec, str) else {}
    budgets = ("bytes_per_token", "error", "threshold")
    if codec == "threshold" and all(value.get(name) is None for name in budgets):
        filled["bytes_per_token"] = 16.0
    return {**filled, **{k: v for k, v in value.items() if v is not None}}


def recipe(tree: dict[str, Any]) -> dict[str, Any]:
    """The whole recipe in its long form; defaults are not filled in."""
    tree = _each(tree, teacher=_teacher, student=_student, loss=_loss, evaluation=_evaluation, generate=_generate)
    tree = _each(_with_answers(tree), data=_data)
    tree = _with_soft(tree)
    teacher_section = tree.get("teacher")
    if isinstance(teacher_section, dict) and _is_labelled(teacher_section) and tree.get("cache") is None:
        tree["cache"] = {}
    if isinstance(tree.get("students"), dict):
        tree["students"] = {name: _student(pupil) for name, pupil in tree["students"].items()}
    if isinstance(teacher_section, dict) and isinstance(teacher_section.get("train"), dict):
        tree = _guarded(tree, from_nothing=teacher_section.get("config") is not None)
    return tree


def _teacher(value: Any) -> Any:
    value = teacher(value)
    return _each(value, train=train) if isinstance(value, dict) else value


def _student(value: Any) -> Any:
    value = student(value)
    return (
        _each(value, layers=layers, width=width, init=init, lora=lora, loss=_loss) if isinstance(value, dict) else value
    )


def _loss(value: Any) -> Any:
    value = loss(value)
    if not isinstance(value, list):
        return value
    return [
        _each(t, weight=schedule, temperature=schedule, layers=layer_pairs) if isinstance(t, dict) else t for t in value
    ]


def _guarded(tree: dict[str, Any], *, from_nothing: bool) -> dict[str, Any]:
    """A teacher that trains is noisy at first: a term with a constant weight and no rule of its own is given one.

    A divergence from a teacher that starts from nothing follows its progress; else the weight rises.
    """

    def guarded(terms: Any) -> Any:
        return [_guarded_term(item, from_nothing=from_nothing) for item in terms] if isinstance(terms, list) else terms

    tree = _each(tree, loss=guarded)
    if isinstance(tree.get("students"), dict):
        tree["students"] = {
            name: _each(pupil, loss=guarded) if isinstance(pupil, dict) else pupil
            for name, pupil in tree["students"].items()
        }
    return tree


def _guarded_term(item: Any, *, from_nothing: bool) -> Any:
    if not isinstance(item, dict) or item.get("teacher") is not None or item.get("trust", "always") != "always":
        return item
    asks = item.get("divergence") is not None or item.get("cross_entropy") == "teacher_argmax"
    weight = item.get("weight", {"schedule": "constant", "start": 1.0})
    is_constant = isinstance(weight, dict) and weight.get("schedule") == "constant"
    if not asks or not is_constant or weight.get("warmup") is not None:
        return item
    if from_nothing and "trust" not in item and item.get("divergence") is not None:
        return {**item, "trust": TRUST_FROM_NOTHING}
    return {**item, "weight": {**weight, "warmup": TRAINED_TEACHER_WARMUP}}


def _with_answers(tree: dict[str, Any]) -> dict[str, Any]:
    """With `teacher.answers` the answers are the data, and only they are learned, unless something else is said."""
    section, data = tree.get("teacher"), tree.get("data", {})
    if not isinstance(section, dict) or section.get("answers") is None or not isinstance(data, dict):
        return tree
    return {**tree, "data": {"sources": [{"answers": section["answers"]}], "train_on": "answers", **data}}


def _soft_of(section: dict[str, Any]) -> str:
    """Where `generate` puts an endpoint's log-probabilities."""
    return f"{str(section.get('answers')).rstrip('/')}/soft"


def _is_labelled(section: dict[str, Any]) -> bool:
    """Whether `label` writes the teacher's cache."""
    return section.get("cache") is not None and section["cache"] != _soft_of(section)


def _with_soft(tree: dict[str, Any]) -> dict[str, Any]:
    """With `teacher.answers` alone a term that asks for distributions learns what the endpoint gave beside its text."""
    section, generate = tree.get("teacher"), tree.get("generate")
    if not isinstance(section, dict) or not isinstance(section.get("answers"), str):
        return tree
    if any(section.get(name) is not None for name in ("model", "memory", "cache", "ensemble", "config")):
        return tree
    if isinstance(generate, dict) and generate.get("top_logprobs") is None:
        return tree
    students = tree.get("students")
    pupils = students.values() if isinstance(students, dict) else ()
    losses = [tree.get("loss"), *(pupil.get("loss") for pupil in pupils if isinstance(pupil, dict))]
    if not any(_asks_teacher(item) for terms in losses if isinstance(terms, list) for item in terms):
        return tree
    return {**tree, "teacher": {**section, "cache": _soft_of(section)}}


def _asks_teacher(item: Any) -> bool:
    if not isinstance(item, dict) or item.get("teacher") is not None:
        return False
    return item.get("divergence") is not None or item.get("cross_entropy") == "teacher_argmax"


def _generate(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return _each(value, prompts=complete_prompts, select=_select)


_OF_STEP = {
    "verify": verify,
    "best": best,
    "deduplicate": deduplicate,
    "decontaminate": lambda value: _each(value, against=globs) if isinstance(value, dict) else value,
    "language": language,
}


def _select(value: Any) -> Any:
    value = select(value)
    steps = value if isinstance(value, list) else []
    return [_each(s, **_OF_STEP) if isinstance(s, dict) else s for s in steps] or value


def _data(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    value = _each(value, sources=sources, held_out=held_out, curriculum=curriculum)
    if isinstance(value.get("held_out"), dict):
        value["held_out"] = _each(value["held_out"], sources=sources)
    return value


def _evaluation(value: Any) -> Any:
    return _each(value, out_of_domain=sources, prompts=globs) if isinstance(value, dict) else value


def _each(value: dict[str, Any], **expand: Any) -> dict[str, Any]:
    return {k: expand[k](v) if k in expand else v for k, v in value.items()}
