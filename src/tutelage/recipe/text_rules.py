"""What no single field can know about a teacher that writes text, and about what it is asked."""

from collections.abc import Iterator
from contextlib import suppress

from tutelage.recipe import column_text, short
from tutelage.recipe.problems import Path, Problem, dotted, is_finite
from tutelage.recipe.tree import (
    COPIES,
    Tree,
    all_students,
    all_terms,
    dead,
    exactly_one,
    given_in,
    items_of,
    section_of,
)

_KEY_WORDS = ("key", "token", "secret", "auth", "password", "cookie")


def broken(tree: Tree) -> Iterator[Problem]:
    """Every problem that spans several fields of teacher.api, teacher.answers and generate."""
    teacher, generate = tree.get("teacher"), tree.get("generate")
    if isinstance(teacher, dict):
        yield from _teacher(teacher, tree)
    if isinstance(generate, dict):
        writers = section_of(teacher, "writers") if isinstance(teacher, dict) else {}
        if not generate.get("prompts") and not _is_compared(tree):
            what = "what is asked: prompts or conversations of JSON lines, or texts whose beginning is continued"
            yield Problem(("generate", "prompts"), f"is missing ({what})")
        yield from _generate(generate, n_teachers=max(1, len(writers)))
        data = section_of(tree, "data")
        if generate.get("top_logprobs") is not None and data.get("train_on", "answers") != "answers":
            yield Problem(("data", "train_on"), "must be answers with generate.top_logprobs: prompts have no numbers")
        yield from _given(generate)
        yield from _who_writes(teacher if isinstance(teacher, dict) else {}, generate)


def _given(generate: Tree) -> Iterator[Problem]:
    """Texts that are scored as they stand: nothing is written, and nothing chosen."""
    if generate.get("given") is None:
        return
    if generate.get("top_logprobs") is None:
        yield Problem(("generate", "top_logprobs"), "is missing: given text is asked for its log-probabilities")
    if not _all_continued(generate.get("prompts")):
        yield Problem(("generate", "prompts"), "must be plain text with generate.given: text files, or jsonl with text")
    for name, usual in (("samples", 1), ("interface", "auto"), ("max_tokens", 512)):
        if generate.get(name, usual) not in (None, usual):
            yield dead(("generate", name), "with generate.given: nothing is written")
    for name in given_in(generate, "temperature", "seed", "system", "select"):
        yield dead(("generate", name), "with generate.given: nothing is written")


def _who_writes(teacher: Tree, generate: Tree) -> Iterator[Problem]:
    """What only an endpoint, or only a model on this machine, has a use for."""
    writers = [w for w in section_of(teacher, "writers").values() if isinstance(w, dict)]
    remote = teacher.get("api") is not None or any(w.get("api") is not None for w in writers)
    alone = not writers and teacher.get("api") is None and teacher.get("answers") is not None
    local = any(w.get("model") is not None for w in writers) or (alone and teacher.get("model") is not None)
    if remote and not local and generate.get("batch") is not None:
        yield dead(("generate", "batch"), "with teacher.api: how many it asks at once is found by measuring")
    if local and not remote:
        paid = ("price",) if _judges(generate.get("select")) else ("budget_usd", "max_requests", "price")
        for name in given_in(generate, *paid):
            yield dead(("generate", name), "with teacher.model: what it writes costs nothing")
    if generate.get("top_logprobs") is not None and (local or writers):
        why = "asks one endpoint, teacher.api; a model on this machine is asked whole by `tutelage label`"
        yield Problem(("generate", "top_logprobs"), why)
    named: list[object] = [source.get("teacher") for _, source in items_of(generate, "prompts")]
    for i, wanted in enumerate(named):
        if wanted is not None and wanted not in section_of(teacher, "writers"):
            known = ", ".join(section_of(teacher, "writers")) or "there are none"
            yield Problem(
                ("generate", "prompts", i, "teacher"), f"must be one of teacher.writers ({known}), got {wanted!r}"
            )
    if named and None not in named:
        for unused in section_of(teacher, "writers").keys() - set(named):
            yield dead(("teacher", "writers", unused), "where every source of prompts names another teacher")


def _teacher(teacher: Tree, tree: Tree) -> Iterator[Problem]:
    api, writers = teacher.get("api"), teacher.get("writers")
    if (api is not None or writers is not None) and teacher.get("answers") is None:
        if not _is_compared(tree):
            yield Problem(("teacher", "answers"), "is missing: name the folder that generate writes and train reads")
        else:
            yield from _of_text(tree, asked=section_of(tree, "generate").get("top_logprobs") is not None)
    if isinstance(api, dict):
        yield from _api(api, ("teacher", "api"))
        if api.get("logprobs_temperature") not in (None, 1) and not section_of(tree, "generate").get("top_logprobs"):
            yield Problem(("teacher", "api", "logprobs_temperature"), "has no effect without generate.top_logprobs")
    if api is not None and writers is not None:
        yield Problem(("teacher", "writers"), "and teacher.api exclude each other: name the endpoint among the writers")
    for name, writer in section_of(teacher, "writers").items():
        if isinstance(writer, dict):
            yield from _writer(writer, ("teacher", "writers", name))
    if teacher.get("terms") is not None and (api is not None or writers is not None or tree.get("generate") is None):
        yield dead(("teacher", "terms"), "where teacher.model writes no text: an endpoint has teacher.api.terms")
    if teacher.get("answers") is not None:
        yield from _answers(teacher, tree)


def _writer(writer: Tree, path: Path) -> Iterator[Problem]:
    yield from exactly_one(writer, "api", "model", path=path)
    if isinstance(writer.get("api"), dict):
        yield from _api(writer["api"], (*path, "api"))
        if writer["api"].get("logprobs_temperature") not in (None, 1):
            yield dead(
                (*path, "api", "logprobs_temperature"), "among several teachers: none is asked for probabilities"
            )
        for name in given_in(writer, "terms", "revision", "dtype", "device"):
            if writer[name] != "auto":
                yield dead((*path, name), "with an endpoint; its terms are api.terms")
    elif writer.get("price") is not None:
        yield dead((*path, "price"), "with a model on this machine: what it writes costs nothing")


def _api(api: Tree, path: Path) -> Iterator[Problem]:
    if api.get("key_env") is not None and api.get("key_file") is not None:
        yield Problem((*path, "key_file"), "has no effect beside key_env; keep one of them")
    if api.get("batch_price") is not None and api.get("transport") != "batch":
        yield dead((*path, "batch_price"), "without transport: batch")
    for field in ("headers", "query"):
        for name in section_of(api, field):
            if any(word in str(name).lower() for word in _KEY_WORDS):
                yield Problem((*path, field, str(name)), "may hold a key; name it by key_env and key_header")
    own = {
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "seed",
        "logprobs",
        "top_logprobs",
        "stream",
        "n",
        "best_of",
    }
    for name in own & section_of(api, "body").keys():
        yield Problem((*path, "body", name), "is set by tutelage; use the field of generate")


def _answers(teacher: Tree, tree: Tree) -> Iterator[Problem]:
    sources = section_of(tree, "data").get("sources")
    if isinstance(sources, list) and not any(isinstance(s, dict) and s.get("answers") for s in sources):
        why = "none of them is {answers: …}; leave data.sources out, and the answers are the data"
        yield Problem(("data", "sources"), f"does not hold what teacher.answers is for: {why}")
    if not any(teacher.get(name) is not None for name in ("model", "memory", "cache", "ensemble", "config")):
        yield from _of_text(tree, asked=False)
        for name in ("revision", "dtype", "device"):
            if teacher.get(name) not in (None, "auto"):
                yield Problem(("teacher", name), "has no effect with answers alone: no teacher runs; remove it")


def _is_compared(tree: Tree) -> bool:
    """An endpoint beside text of one's own: `compare` has it write, each technique in a folder of the comparison."""
    teacher, sources = section_of(tree, "teacher"), section_of(tree, "data").get("sources")
    own = isinstance(sources, list) and bool(sources)
    return (
        teacher.get("api") is not None
        and teacher.get("answers") is None
        and own
        and not any(isinstance(source, dict) and source.get("answers") for source in sources or ())
    )


def _of_text(tree: Tree, *, asked: bool) -> Iterator[Problem]:
    """What a teacher that only writes cannot give; with `asked` it is asked for its log-probabilities."""
    for path, student in all_students(tree):
        for name in (*COPIES, "config"):
            if student.get(name) is not None:
                why = "text has no weights and no tokenizer"
                yield Problem((*path, name), f"needs teacher.model: {why}; give {dotted((*path, 'model'))}")
    for path, term in all_terms(tree) if not asked else ():
        if term.get("cross_entropy") != "ground_truth" and term.get("teacher") is None:
            ways = "use cross_entropy, or ask for generate.top_logprobs"
            yield Problem(path, f"needs a teacher that gives distributions; answers are text: {ways}")


def _generate(generate: Tree, *, n_teachers: int) -> Iterator[Problem]:
    path: Path = ("generate",)
    temperature, samples = generate.get("temperature"), generate.get("samples", 1)
    if temperature == 0 and is_finite(samples) and samples > 1:
        yield Problem((*path, "samples"), f"must be 1 at temperature 0: {samples} samples would be the same answer")
    if generate.get("system") is not None and generate.get("interface") == "completions":
        yield Problem((*path, "system"), "has no effect with interface: completions; remove it")
    sources = generate.get("prompts")
    if generate.get("system") is not None and generate.get("interface", "auto") == "auto" and _all_continued(sources):
        yield Problem((*path, "system"), "has no effect on texts that are continued; use interface: chat, or remove it")
    for i, source in enumerate(sources if isinstance(sources, list) else ()):
        if isinstance(source, dict):
            yield from _prompt_source(source, (*path, "prompts", i))
    steps = generate.get("select")
    yield from _judge(generate, steps)
    for i, step in enumerate(steps if isinstance(steps, list) else ()):
        if isinstance(step, dict):
            yield from _step(step, (*path, "select", i))
            if isinstance(step.get("best"), dict):
                yield from _best(step["best"], (*path, "select", i, "best"), samples=samples, n_teachers=n_teachers)


def _all_continued(sources: object) -> bool:
    """Whether every source is plain text."""
    listed = sources if isinstance(sources, list) and sources else [None]
    return all(
        isinstance(source, dict)
        and source.get("template") is None
        and (not short.has_columns(source) or section_of(source, "columns").get("text") is not None)
        for source in listed
    )


def _prompt_source(source: Tree, path: Path) -> Iterator[Problem]:
    for name in ("answers", "memory", "weight"):
        if source.get(name) not in (None, 1, 1.0):
            yield Problem((*path, name), "has no effect on prompts; remove it")
    columns = source.get("columns")
    given = sorted(name for name, value in columns.items() if value is not None) if isinstance(columns, dict) else []
    template = source.get("template")
    if isinstance(template, str):
        yield from _template(template, source, path)
        if given not in ([], ["answer"]):
            found = " and ".join(given)
            yield Problem((*path, "columns"), f"beside template may name answer (the right one) only; found {found}")
    elif template is None and given and given not in (["text"], ["prompt"], ["answer", "prompt"], ["messages"]):
        message = f"must name prompt, prompt and answer (the right one), messages, or text; found {' and '.join(given)}"
        yield Problem((*path, "columns"), message)


def _template(template: str, source: Tree, path: Path) -> Iterator[Problem]:
    if not short.has_columns(source):
        yield Problem((*path, "template"), "has no effect without jsonl: texts have no columns; remove it")
    with suppress(ValueError):  # said by the field itself
        if template and not column_text.parse(template).columns:
            yield Problem((*path, "template"), "names no {column}: every prompt would be the same")


_STEPS = ("complete", "verify", "best", "length", "repetition", "deduplicate", "decontaminate", "language")


def _step(step: Tree, path: Path) -> Iterator[Problem]:
    known = _STEPS
    given = [name for name in known if step.get(name) is not None]
    if len(given) != 1 and not step.keys() - set(known):
        yield Problem(path, f"needs exactly one of {', '.join(known)}; found {' and '.join(given) or 'none'}")
    verify = step.get("verify")
    if isinstance(verify, dict):
        yield from _verify(verify, (*path, "verify"))
    length = step.get("length")
    if isinstance(length, dict):
        least, most = length.get("least", 1), length.get("most")
        if is_finite(least) and is_finite(most) and least > most:
            yield Problem((*path, "length"), f"least {least} is more than most {most}")


def _verify(verify: Tree, path: Path) -> Iterator[Problem]:
    kinds = ("number", "exact", "choice", "regex", "json_schema", "function")
    given = [name for name in kinds if verify.get(name) is not None]
    if len(given) != 1 and not verify.keys() - {*kinds, "timeout_s"}:
        yield Problem(path, f"needs exactly one of {', '.join(kinds)}; found {' and '.join(given) or 'none'}")
    if verify.get("timeout_s") is not None and verify.get("function") is None:
        yield Problem((*path, "timeout_s"), "has no effect without function; remove it")


def _best(best: Tree, path: Path, *, samples: object, n_teachers: int) -> Iterator[Problem]:
    keep, by = best.get("keep", 1), best.get("by")
    if is_finite(keep) and is_finite(samples) and keep >= samples * n_teachers:
        each = " a teacher" if n_teachers > 1 else ""
        yield Problem((*path, "keep"), f"must be below generate.samples ({samples}{each}): else nothing is chosen")
    if by == "verify" and best.get("verify") is None:
        yield Problem((*path, "verify"), "is missing: say by which verifier, such as {function: path.py:name}")
    if by == "judge" and best.get("judge") is None:
        yield Problem((*path, "judge"), "is missing: give its api, as for a teacher, and its price")
    for name, of in (("verify", "verify"), ("prefer", "length"), ("judge", "judge")):
        if best.get(name) is not None and by in ("verify", "length", "judge") and by != of:
            yield Problem((*path, name), f"has no effect with by: {by}; remove it")
    if isinstance(best.get("verify"), dict):
        yield from _verify(best["verify"], (*path, "verify"))


def _judge(generate: Tree, steps: object) -> Iterator[Problem]:
    """What spans the judge and the rest: one of them at most, and priced where the answers are."""
    judges = _judges(steps)
    for n, (i, judge) in enumerate(judges):
        path: Path = ("generate", "select", i, "best", "judge")
        if n:
            yield Problem(path, f"is the second one; only select[{judges[0][0]}] may ask a judge")
        if isinstance(judge.get("api"), dict):
            yield from _api(judge["api"], (*path, "api"))
            for name, usual in (("transport", "direct"), ("batch_price", None), ("logprobs_temperature", 1)):
                if judge["api"].get(name, usual) not in (None, usual):
                    yield dead((*path, "api", name), "with a judge: it is asked directly, for text")
        if generate.get("price") is not None and judge.get("price") is None:
            yield Problem((*path, "price"), "is missing: generate has a price, and the cap counts the judge too")
        if generate.get("price") is None and judge.get("price") is not None and generate.get("budget_usd") is None:
            yield Problem((*path, "price"), "has no effect without generate.price; give both or none")


def _judges(steps: object) -> list[tuple[int, Tree]]:
    """The models that judge, with the numbers of their steps."""
    all_steps = enumerate(steps if isinstance(steps, list) else ())
    bests = [(i, section_of(step, "best")) for i, step in all_steps if isinstance(step, dict)]
    return [(i, best["judge"]) for i, best in bests if isinstance(best.get("judge"), dict)]
