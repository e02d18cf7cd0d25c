"""From a recipe to what is asked: the endpoint, the requests, the cap, all checked before anything is sent."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage import console
from tutelage.data.answers import CARD, ROWS
from tutelage.data.example import Reject
from tutelage.errors import ConfigError, IntegrityError
from tutelage.generation import journal as journals
from tutelage.generation.budget import Budget, Price
from tutelage.generation.endpoint import Endpoint, open_endpoint
from tutelage.generation.ledger import PICO
from tutelage.generation.product import Selection
from tutelage.generation.prompts import Asking, Beginning, is_plain_text, read_prompts
from tutelage.generation.request import Request, Sampling, request_of
from tutelage.recipe import Api, Generate, Recipe

_OURS = (ROWS, CARD, journals.NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a first pass over the prompts finds, before anything is sent."""

    n_prompts: int
    n_rejected: int
    keys: Mapping[str, int]  # of every request: the most that it can cost, in picodollars


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A checked recipe, ready to be asked."""

    recipe: Recipe
    api: Api
    generate: Generate
    folder: Path
    endpoint: Endpoint
    asking: Asking
    sampling: Sampling
    budget: Budget

    def requests(self) -> Iterator[Request | Reject]:
        """Every request in the order of the prompts; two prompts that ask the same have the same key."""
        for prompt in read_prompts(self.generate, self.asking):
            if isinstance(prompt, Reject):
                yield prompt
                continue
            for sample in range(self.generate.samples):
                yield request_of(prompt, self.sampling, sample=sample)

    def sound(self) -> Iterator[Request]:
        """The requests alone."""
        return (request for request in self.requests() if isinstance(request, Request))

    def survey(self) -> Survey:
        """Counts everything; IntegrityError for prompts that are none, before a cent is spent."""
        keys, rejects, n_prompts = dict[str, int](), list[Reject](), 0
        for item in self.requests():
            if isinstance(item, Reject):
                rejects.append(item)
            else:
                keys[item.key] = self.budget.most(item.texts, max_tokens=self.sampling.max_tokens)
                n_prompts += item.sample == 0
        found = f"{len(rejects)} of {n_prompts + len(rejects)} prompts rejected"
        first = f"first: {rejects[0].name}, {rejects[0].reason}" if rejects else ""
        if len(rejects) > self.recipe.data.max_reject * (n_prompts + len(rejects)):
            advice = "nothing was sent; repair the rows, name their columns, or raise data.max_reject"
            raise IntegrityError("TOO_MANY_REJECTS", f"{found} ({first}); {advice}")
        if rejects:
            console.warning("REJECTED", f"{found} ({first})")
        if not keys:
            raise IntegrityError("DATA_READ", "generate.prompts holds no prompt; check its files")
        return Survey(n_prompts=n_prompts, n_rejected=len(rejects), keys=keys)

    def identity(self, survey: Survey) -> str:
        """SHA-256 of everything that is asked and of the selection: what decides the rows once all is answered."""
        steps = [step.model_dump(mode="json") for step in self.generate.select]
        digest = hashlib.sha256(json.dumps(steps, sort_keys=True).encode())
        for key in survey.keys:
            digest.update(key.encode())
        return digest.hexdigest()


def open_task(recipe: Recipe, *, asks: bool = True, allow_private_host: bool = False) -> Task:
    """The task of a recipe; ConfigError for what cannot be asked, before anything is sent.

    Without `asks` nothing will be sent: no key and no cap need to be there.
    """
    teacher, wanted = recipe.teacher, recipe.generate
    if teacher is None or teacher.api is None or teacher.answers is None:
        raise ConfigError("CONFIG", "generate asks teacher.api and writes to teacher.answers; the recipe lacks one")
    if wanted is None:
        raise ConfigError("CONFIG", "generate needs the section generate: with prompts and a cap")
    api, folder = teacher.api, Path(teacher.answers)
    _require_ours(folder)
    endpoint = open_endpoint(
        api.base_url,
        key_env=api.key_env if asks else None,
        key_file=api.key_file if asks else None,
        key_header=api.key_header,
        headers=api.headers,
        query=api.query,
        allow_private_host=allow_private_host or not asks,
    )
    if asks and not wanted.has_cap:
        raise ConfigError("CONFIG", "generate needs a cap: generate.budget_usd with price, or generate.max_requests")
    Selection(wanted.select)  # a pattern or schema that is none is said before anything is paid
    asking = Asking(system=wanted.system, interface=wanted.interface, beginning=_beginning(recipe, wanted))
    sampling = Sampling(
        model=api.model,
        place="loopback" if endpoint.is_loopback else endpoint.base_url,
        max_tokens=wanted.max_tokens,
        temperature=wanted.temperature,
        seed=wanted.seed,
        body=dict(api.body or {}),
    )
    return Task(
        recipe=recipe,
        api=api,
        generate=wanted,
        folder=folder,
        endpoint=endpoint,
        asking=asking,
        sampling=sampling,
        budget=_budget(api, wanted),
    )


def _require_ours(folder: Path) -> None:
    """ConfigError[EXISTS] for a folder with other things in it."""
    others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    if folder.is_file() or (others and not any((folder / name).exists() for name in _OURS)):
        found = f"holds {', '.join(others[:3])} and no answers" if others else "is a file"
        raise ConfigError("EXISTS", f"{folder} {found}; name an empty or new folder: teacher.answers=FOLDER")


def _budget(api: Api, wanted: Generate) -> Budget:
    if wanted.price is None:
        if wanted.budget_usd is not None:
            found = f"no price for model {api.model}"
            raise ConfigError("NO_PRICE", f"{found}; set generate.price, or cap by generate.max_requests alone")
        return Budget(max_requests=wanted.max_requests)
    price = Price.of(prompt_usd=wanted.price.prompt_usd, answer_usd=wanted.price.answer_usd)
    cap = round(wanted.budget_usd * PICO) if wanted.budget_usd is not None else None
    return Budget(price=price, cap=cap, max_requests=wanted.max_requests)


def _beginning(recipe: Recipe, wanted: Generate) -> Beginning:
    """The first tokens of a plain text, by the student's tokenizer; it is loaded only when a source needs it."""
    if not any(is_plain_text(source) for source in wanted.prompts):
        return lambda text: text
    from tutelage.models.load import load_tokenizer

    named = [learner.section for learner in recipe.learners.values() if learner.section.model is not None]
    section = named[0] if named else recipe.teacher
    if section is None or section.model is None:
        raise ConfigError("CONFIG", "plain text is cut by the student's tokenizer; give student.model")
    backend = load_tokenizer(section.model, revision=section.revision).backend_tokenizer
    n_tokens = wanted.prompt_tokens

    def beginning(text: str) -> str:
        offsets = backend.encode(text[: 64 * (n_tokens + 8)], add_special_tokens=False).offsets
        return text[: offsets[n_tokens - 1][1]] if len(offsets) > n_tokens else text

    return beginning
