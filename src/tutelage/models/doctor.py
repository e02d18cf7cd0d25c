"""`tutelage doctor`: what a model folder holds, whether it is safe, and whether teacher and student fit together.

No code of a model is imported, no weight is loaded; the tokenizer is read only when the audit found no error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage import io
from tutelage.errors import TutelageError
from tutelage.models import load, quantized, vocabulary
from tutelage.models.quiet import quiet_transformers
from tutelage.models.safety import Finding, TensorEntry, audit, read_safetensors_header
from tutelage.models.template import Renderer, chat_template
from tutelage.models.whole import problem_in, unused_in
from tutelage.recipe import Recipe

_HEADS = ("lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight", "model.decoder.embed_tokens.weight")
_PROBE = [{"role": "user", "content": "Is this safe?"}, {"role": "assistant", "content": "It renders."}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found; `facts` are for people and programs alike, by model."""

    findings: tuple[Finding, ...]
    facts: dict[str, dict[str, io.Json]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """The report for programs."""
        rows = [{"level": f.level, "code": f.code, "message": f.message} for f in self.findings]
        return {"ok": self.ok, "findings": rows, "models": self.facts}

    def __str__(self) -> str:
        lines = []
        for name, facts in self.facts.items():
            lines += [name, *(f"  {key}: {value}" for key, value in facts.items())]
        lines += [f"{f.level}[{f.code}]: {f.message}" for f in self.findings]
        n_errors = sum(finding.level == "error" for finding in self.findings)
        verdict = "no error found" if self.ok else f"{n_errors} error{'s' if n_errors > 1 else ''} found: do not use it"
        return "\n".join([*lines, verdict])


@dataclass(frozen=True, slots=True)
class _Examined:
    findings: list[Finding]
    facts: dict[str, io.Json]
    tokenizer: Any = None


def examine(target: "str | Path | Recipe") -> Report:
    """The report about a model (hub id, folder, .gguf file, package) or about a recipe's teacher and student."""
    if isinstance(target, Recipe):
        return _examine_recipe(target)
    found = _examine_model(str(target), None)
    return Report(findings=tuple(found.findings), facts={str(target): found.facts})


def _examine_recipe(recipe: Recipe) -> Report:
    found = {f"{role} {model}": _examine_model(model, revision) for role, model, revision in _named(recipe)}
    findings = [finding for one in found.values() for finding in one.findings]
    tokenizers = [one.tokenizer for one in found.values() if one.tokenizer is not None]
    for other in tokenizers[1:]:
        findings += _pair(tokenizers[0], other, own_template=recipe.data.chat_template is not None)
    if recipe.data.chat_template is not None and tokenizers:
        findings += _template(tokenizers[0], recipe.data.chat_template)
    return Report(findings=tuple(findings), facts={name: one.facts for name, one in found.items()})


def _named(recipe: Recipe) -> Iterator[tuple[str, str, str | None]]:
    """Each model that a recipe names: (its role, where it is, its revision)."""
    teacher = recipe.teacher
    if teacher is not None:
        named = teacher.tokenizer or teacher.model
        if named is not None:
            yield "teacher", named, teacher.revision
        for i, member in enumerate(teacher.ensemble or ()):
            yield f"teacher {i}", member.model, member.revision
    for name, learner in recipe.learners.items():
        if learner.section.model is not None:
            yield name, learner.section.model, learner.section.revision


def _pair(teacher: Any, student: Any, *, own_template: bool) -> Iterator[Finding]:
    """Whether teacher and student count in the same tokens, speak by the same template and end alike."""
    checks = [vocabulary.compare_tokenizers]
    if not own_template:
        checks.append(vocabulary.compare_templates)
    for check in checks:
        try:
            check(teacher, student)
        except TutelageError as error:
            yield Finding(level="error", code=error.code, message=error.message)
    if (finding := vocabulary.ends_finding(teacher, student)) is not None:
        yield finding


def _examine_model(source: str, revision: str | None) -> _Examined:
    try:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            folder = load.resolve(source, revision).folder
        findings = audit(folder)
        if any(finding.level == "error" for finding in findings):
            return _Examined(findings, {"folder": str(folder)})
        tokenizer = load.load_tokenizer(str(folder))
        findings += _weights(folder)
    except TutelageError as error:
        return _Examined([Finding(level="error", code=error.code, message=error.message)], {})
    findings += _template(tokenizer, None)
    tensors = [entry for path in sorted(folder.glob("*.safetensors")) for entry in read_safetensors_header(path)]
    rows = _head_rows(tensors)
    n_vocabulary = vocabulary.real_vocabulary(tokenizer)
    if rows is not None and (padding := vocabulary.padded_rows(rows, n_vocabulary)) is not None:
        findings.append(padding)
    findings += _ends(tokenizer, folder)
    config = json.loads((folder / "config.json").read_bytes())
    facts: dict[str, io.Json] = {
        "folder": str(folder),
        "type": str(config["model_type"]),
        "parameters": sum(_n_weights(entry) for entry in tensors),
        "bytes": sum(entry.end - entry.start for entry in tensors),
        "weight types": ", ".join(sorted({entry.dtype for entry in tensors})),
        "tokens": n_vocabulary,
        "rows of the head": rows,
        "tokenizer sha256": vocabulary.tokenizer_fingerprint(tokenizer),
        "chat template sha256": vocabulary.template_fingerprint(tokenizer),
        "ends on": f"{tokenizer.eos_token_id} {tokenizer.eos_token!r}",
    }
    return _Examined(findings, facts, tokenizer)


def _weights(folder: Path) -> Iterator[Finding]:
    """Whether its files hold what its config asks for: by names and shapes, no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with load.load_errors(str(folder)), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if quantized.stored_as(config) is not None:
            return  # its library packs them in shapes of its own
        _, info = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True,
            trust_remote_code=False, use_safetensors=True,
        )  # fmt: skip
    if (problem := problem_in(info)) is not None:
        yield Finding(level="error", code="MODEL_LOAD", message=f"{folder}: {problem}")
    if said := unused_in(info):
        yield Finding(level="note", code="UNUSED_WEIGHTS", message=f"{folder}: {said}")


def _n_weights(entry: TensorEntry) -> int:
    n = 1
    for size in entry.shape:
        n *= size
    return n


def _head_rows(tensors: list[TensorEntry]) -> int | None:
    """Rows of the head (or of the embedding it is tied to), None for a model that names them otherwise."""
    by_name = {entry.name: entry for entry in tensors}
    return next((by_name[name].shape[0] for name in _HEADS if name in by_name and by_name[name].shape), None)


def _template(tokenizer: Any, template: str | None) -> Iterator[Finding]:
    """Whether the chat template renders a small conversation inside the limits."""
    if template is None and chat_template(tokenizer) is None:
        message = "no chat template; conversations need data.chat_template, plain text does not"
        yield Finding(level="note", code="TEMPLATE", message=message)
        return
    renderer = Renderer.of(tokenizer, template=template)
    assert renderer is not None
    try:
        with renderer:
            renderer.render(_PROBE)
    except TutelageError as error:
        yield Finding(level="error", code=error.code, message=error.message)


def _ends(tokenizer: Any, folder: Path) -> Iterator[Finding]:
    """Whether the tokenizer and the generation config agree on how a text ends."""
    path = folder / "generation_config.json"
    stops = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
    stops = stops if isinstance(stops, list) else [stops]
    if tokenizer.eos_token_id is None:
        message = "the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json"
        yield Finding(level="warning", code="EOS_MISMATCH", message=message)
    elif stops != [None] and tokenizer.eos_token_id not in stops:
        message = (
            f"the tokenizer ends on {tokenizer.eos_token_id} {tokenizer.eos_token!r}, generation_config on {stops}"
        )
        yield Finding(level="warning", code="EOS_MISMATCH", message=message)
