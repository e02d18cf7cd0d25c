"""From a recipe to what is asked: the endpoint, the requests, the cap, all checked before anything is sent."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage import console
from tutelage.data.answers import CARD, ROWS
from tutelage.data.example import Reject
from tutelage.errors import ConfigError, IntegrityError
from tutelage.generation import journal as journals
from tutelage.generation import judging
from tutelage.generation.budget import Budget
from tutelage.generation.endpoint import require_own_keys
from tutelage.generation.judging import Judge
from tutelage.generation.key_table import KeyTable
from tutelage.generation.ledger import Ledger
from tutelage.generation.parquet import require_pyarrow
from tutelage.generation.prompts import Asking, is_plain_text, read_prompts
from tutelage.generation.request import Prompt, Request, request_of
from tutelage.generation.selection import Selection
from tutelage.generation.writers import Writer, caps_of, endpoint_of, open_writers, require_cap
from tutelage.recipe import Generate, Recipe

PROMPT_TOKENS = 64  # of a plain text that is continued, unless the recipe says
_OURS = (ROWS, CARD, journals.NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a first pass over the prompts finds, before anything is sent."""

    n_prompts: int
    n_rejected: int
    keys: KeyTable  # of every request
    sha256: str  # of every request with all that stands in its row beside the reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A checked recipe, ready to be asked."""

    recipe: Recipe
    generate: Generate
    folder: Path
    asking: Asking
    writers: tuple[Writer, ...]
    judge: Judge | None = None
    select_files: Mapping[str, str]  # what the selection reads besides the recipe: name -> SHA-256

    @property
    def budget(self) -> Budget:
        """The caps over all teachers together; a price is there where one endpoint has one."""
        return next((writer.budget for writer in self.writers if writer.api is not None), caps_of(self.generate))

    @property
    def optional(self) -> frozenset[str]:
        """The teachers whose answers are whole without a finish_reason."""
        return frozenset(writer.name for writer in self.writers if writer.finish_reason_optional)

    def writer(self, name: str) -> Writer | None:
        """The teacher of that name, if it is still one."""
        return next((writer for writer in self.writers if writer.name == name), None)

    @property
    def base_url(self) -> str:
        """Where it asks, for people."""
        return ", ".join(dict.fromkeys(writer.place for writer in self.writers))

    @property
    def model(self) -> str:
        """Whom it asks, for people."""
        return ", ".join(dict.fromkeys(writer.model for writer in self.writers))

    def by_prompt(self) -> Iterator[list[Request] | Reject]:
        """The requests of each prompt, in the order of the prompts; two that ask the same have the same key."""
        for prompt in read_prompts(self.generate, self.asking):
            yield prompt if isinstance(prompt, Reject) else list(self._of_prompt(prompt))

    def _of_prompt(self, prompt: Prompt) -> Iterator[Request]:
        for writer in self.writers:
            if prompt.teacher not in ("", writer.name):
                continue
            for sample in range(self.generate.samples):
                yield request_of(prompt, writer.sampling, sample=sample, teacher=writer.name)

    def sound(self) -> Iterator[Request]:
        """Every request, in the order of the prompts."""
        return (request for asked in self.by_prompt() if isinstance(asked, list) for request in asked)

    def most(self, ledger: Ledger) -> int:
        """Picodollars that all requests without a final reply can cost at most."""
        budgets, seen = {writer.name: writer.budget for writer in self.writers}, KeyTable()
        return sum(
            budgets[request.teacher].most(request.texts, max_tokens=request.sampling.max_tokens)
            for request in self.sound()
            if request.key not in ledger.final and seen.add(request.key)
        )

    def survey(self) -> Survey:
        """Counts everything; IntegrityError for prompts that are none, before a cent is spent."""
        keys, n_rejects, n_prompts, digest = KeyTable(), 0, 0, hashlib.sha256()
        first = ""
        for asked in self.by_prompt():
            if isinstance(asked, Reject):
                first = first or f"first: {asked.name}, {asked.reason}"
                n_rejects += 1
                continue
            n_prompts += 1
            for request in asked:
                keys.add(request.key)
                own = [request.key, request.teacher, request.prompt.source, request.prompt.reference]
                digest.update(json.dumps(own).encode())
        found = f"{n_rejects} of {n_prompts + n_rejects} prompts rejected"
        if n_rejects > self.recipe.data.max_reject * (n_prompts + n_rejects):
            advice = "nothing was sent; repair the rows, name their columns, or raise data.max_reject"
            raise IntegrityError("TOO_MANY_REJECTS", f"{found} ({first}); {advice}")
        if n_rejects:
            console.warning("REJECTED", f"{found} ({first})")
        if not len(keys):
            raise IntegrityError("DATA_READ", "generate.prompts holds no prompt; check its files")
        return Survey(n_prompts=n_prompts, n_rejected=n_rejects, keys=keys, sha256=digest.hexdigest())

    def identity(self, survey: Survey) -> str:
        """SHA-256 of everything that is asked and of the selection: what decides the rows once all is answered."""
        steps = [step.model_dump(mode="json") for step in self.generate.select]
        what = [survey.sha256, steps, dict(self.select_files), sorted(self.optional)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def open_task(recipe: Recipe, *, asks: bool = True, allow_private_host: bool = False) -> Task:
    """The task of a recipe; ConfigError for what cannot be asked, before anything is sent.

    Without `asks` nothing will be sent: no key and no cap need to be there.
    """
    teacher, wanted = recipe.teacher, recipe.generate
    if teacher is None or teacher.answers is None:
        raise ConfigError("CONFIG", "generate asks a teacher and writes to teacher.answers; the recipe lacks that")
    if wanted is None:
        raise ConfigError("CONFIG", "generate needs the section generate: with prompts and a cap")
    folder = Path(teacher.answers)
    _require_ours(folder)
    if wanted.parquet:
        require_pyarrow()
    if wanted.top_logprobs is not None:
        named_student(recipe, "generate.top_logprobs is matched with the student's tokens")
    writers = open_writers(recipe, wanted, asks=asks, allow_private_host=allow_private_host)
    judge = _judge(wanted, asks=asks, allow_private_host=allow_private_host)
    if asks:
        asked = [writer.endpoint for writer in writers] + [judge.endpoint if judge is not None else None]
        require_own_keys(endpoint for endpoint in asked if endpoint is not None)
    selection = Selection(wanted.select)  # a pattern or schema that is none is said before anything is paid
    selection.close()
    return Task(
        recipe=recipe,
        generate=wanted,
        folder=folder,
        asking=asking_of(recipe, wanted),
        writers=writers,
        judge=judge,
        select_files=selection.files,
    )


def _judge(wanted: Generate, *, asks: bool, allow_private_host: bool) -> Judge | None:
    best = judging.settings_of(wanted.select)
    if best is None or best.judge is None:
        return None
    if asks:
        require_cap(wanted)
    if wanted.budget_usd is not None and best.judge.price is None:
        found = f"no price for the judge {best.judge.api.model}: generate.budget_usd counts what it costs too"
        raise ConfigError("NO_PRICE", f"{found}; set judge.price, or cap by generate.max_requests alone")
    endpoint = endpoint_of(best.judge.api, asks=asks, allow_private_host=allow_private_host)
    return judging.open_judge(wanted.select, endpoint, budget=caps_of(wanted))


def named_student(recipe: Recipe, why: str) -> tuple[str, str | None]:
    """(model, revision) of the first student that is named; ConfigError with the reason when none is."""
    for learner in recipe.learners.values():
        if learner.section.model is not None:
            return learner.section.model, learner.section.revision
    raise ConfigError("CONFIG", f"{why}; give student.model")


def _require_ours(folder: Path) -> None:
    """ConfigError[EXISTS] for a folder with other things in it."""
    others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    if folder.is_file() or (others and not any((folder / name).exists() for name in _OURS)):
        found = f"holds {', '.join(others[:3])} and no answers" if others else "is a file"
        raise ConfigError("EXISTS", f"{folder} {found}; name an empty or new folder: teacher.answers=FOLDER")


def asking_of(recipe: Recipe, wanted: Generate) -> Asking:
    """How the rows of the recipe's sources become prompts."""
    asking = Asking(system=wanted.system, interface=wanted.interface, beginning=lambda text: text)
    if not any(is_plain_text(source) for source in wanted.prompts):
        return asking
    cut = _cutter(recipe)
    if wanted.given is not None:
        n_tokens = wanted.prompt_tokens or recipe.data.max_length
        return replace(asking, pieces=lambda text: [piece for piece in cut(text, n_tokens) if piece.strip()])
    n_first = wanted.prompt_tokens or PROMPT_TOKENS

    def beginning(text: str) -> str:
        head = text[: 64 * (n_first + 8)]
        first = next(cut(head, n_first), head)
        return first if len(first) < len(head) else text

    return replace(asking, beginning=beginning)


def _cutter(recipe: Recipe) -> Callable[[str, int], Iterator[str]]:
    """Cuts a text into pieces of so many tokens of the student's."""
    from tutelage.models.load import load_tokenizer

    named = [learner.section for learner in recipe.learners.values() if learner.section.model is not None]
    section = named[0] if named else recipe.teacher
    if section is None or section.model is None:
        raise ConfigError("CONFIG", "plain text is cut by the student's tokenizer; give student.model")
    backend = load_tokenizer(section.model, revision=section.revision).backend_tokenizer

    def cut(text: str, n_tokens: int) -> Iterator[str]:
        ends = [end for _, end in backend.encode(text, add_special_tokens=False).offsets]
        begin = 0
        while begin < len(text):
            end, ends = (ends[n_tokens - 1], ends[n_tokens:]) if len(ends) > n_tokens else (len(text), [])
            end = max(end, begin + 1)  # several tokens may make one character
            yield text[begin:end]
            begin = end

    return cut
