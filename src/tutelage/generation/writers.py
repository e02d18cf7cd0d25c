"""Who is asked: the teachers of a recipe that write text, each checked and with what its requests share."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.errors import ConfigError
from tutelage.generation.budget import Budget, Price
from tutelage.generation.endpoint import Endpoint, open_endpoint
from tutelage.generation.ledger import PICO
from tutelage.generation.request import Sampling
from tutelage.recipe import Api, Generate, Recipe, TextTeacher

HERE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A model on this machine, as the recipe names it; its weights are not loaded yet."""

    model: str
    revision: str | None
    dtype: str
    device: str
    weights: str  # SHA-256
    tokenizer: str  # SHA-256
    template: str | None  # SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """One teacher that writes text: an endpoint, or a model on this machine."""

    name: str  # empty where there is only one
    model: str  # for people
    sampling: Sampling
    budget: Budget
    terms: str | None = None
    price: dict[str, float] | None = None  # dollars for a million tokens
    api: Api | None = None
    endpoint: Endpoint | None = None
    local: Local | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.endpoint.base_url if self.endpoint is not None else HERE

    @property
    def finish_reason_optional(self) -> bool:
        """Whether an answer without finish_reason is whole."""
        return self.api is not None and self.api.finish_reason_optional


def open_writers(recipe: Recipe, wanted: Generate, *, asks: bool, allow_private_host: bool) -> tuple[Writer, ...]:
    """The teachers that the recipe asks; ConfigError for one that cannot be."""
    teacher = recipe.teacher
    assert teacher is not None
    if teacher.writers is not None:
        return _different(
            _named(name, section, wanted, asks=asks, allow_private_host=allow_private_host)
            for name, section in teacher.writers.items()
        )
    if teacher.api is not None:
        return (_remote("", teacher.api, wanted, asks=asks, allow_private_host=allow_private_host),)
    if teacher.model is None:
        raise ConfigError("CONFIG", "generate asks teacher.api, writers or model; the recipe has none of them")
    local = _local(teacher.model, revision=teacher.revision, dtype=teacher.dtype, device=teacher.device)
    return (_at_home("", local, wanted, terms=teacher.terms),)


def _different(writers: Iterable[Writer]) -> tuple[Writer, ...]:
    """ConfigError for two that would be asked the same: their answers could not be told apart."""
    known = list[Writer]()
    for writer in writers:
        if twin := next((other for other in known if other.sampling == writer.sampling), None):
            found = f"teacher.writers: {twin.name} and {writer.name} would be asked the same"
            raise ConfigError(
                "CONFIG", f"{found} ({writer.model}, {writer.place}); use generate.samples, or leave one out"
            )
        known.append(writer)
    return tuple(known)


def _named(name: str, section: TextTeacher, wanted: Generate, *, asks: bool, allow_private_host: bool) -> Writer:
    if section.api is not None:
        own = wanted if section.price is None else wanted.model_copy(update={"price": section.price})
        return _remote(name, section.api, own, asks=asks, allow_private_host=allow_private_host)
    assert section.model is not None, "recipe rules"
    local = _local(section.model, revision=section.revision, dtype=section.dtype, device=section.device)
    return _at_home(name, local, wanted, terms=section.terms)


def _remote(name: str, api: Api, wanted: Generate, *, asks: bool, allow_private_host: bool) -> Writer:
    endpoint = endpoint_of(api, asks=asks, allow_private_host=allow_private_host)
    if asks:
        require_cap(wanted)
    if api.transport == "batch" and api.batch_price is not None:
        wanted = wanted.model_copy(update={"price": api.batch_price})
    # One server on this machine stays the same on another port; of several the port says which.
    place = "loopback" if endpoint.is_loopback and not name else endpoint.base_url
    return Writer(
        name=name,
        model=api.model,
        sampling=_sampling(wanted, model=api.model, place=place, body=dict(api.body or {})),
        budget=_budget(api, wanted),
        terms=api.terms,
        price=wanted.price.model_dump() if wanted.price is not None else None,
        api=api,
        endpoint=endpoint,
    )


def endpoint_of(api: Api, *, asks: bool, allow_private_host: bool) -> Endpoint:
    """The checked endpoint of a section; without `asks` nothing is sent, so no key need be there."""
    return open_endpoint(
        api.base_url,
        key_env=api.key_env if asks else None,
        key_file=api.key_file if asks else None,
        key_header=api.key_header,
        headers=api.headers,
        query=api.query,
        allow_private_host=allow_private_host or not asks,
    )


def require_cap(wanted: Generate) -> None:
    """ConfigError where nothing caps what may be bought."""
    if not wanted.has_cap:
        raise ConfigError("CONFIG", "generate needs a cap: generate.budget_usd with price, or generate.max_requests")


def caps_of(wanted: Generate) -> Budget:
    """The caps of a recipe, over all who are asked; without anybody's price."""
    cap = round(wanted.budget_usd * PICO) if wanted.budget_usd is not None else None
    return Budget(cap=cap, max_requests=wanted.max_requests)


def _budget(api: Api, wanted: Generate) -> Budget:
    if wanted.price is None:
        if wanted.budget_usd is not None:
            found = f"no price for model {api.model}"
            raise ConfigError("NO_PRICE", f"{found}; set generate.price, or cap by generate.max_requests alone")
        return caps_of(wanted)
    price = Price.of(prompt_usd=wanted.price.prompt_usd, answer_usd=wanted.price.answer_usd)
    return replace(caps_of(wanted), price=price)


def _at_home(name: str, local: Local, wanted: Generate, *, terms: str | None) -> Writer:
    """Its requests are known by what it computes with, not by where its folder lies."""
    what = repr((local.weights, local.tokenizer, local.template, local.dtype))
    model = f"weights {hashlib.sha256(what.encode()).hexdigest()}"
    shown = local.model if not Path(local.model).exists() else Path(local.model).name
    sampling = _sampling(wanted, model=model, place=HERE, body={})
    return Writer(name=name, model=shown, sampling=sampling, budget=Budget(), terms=terms, local=local)


def _local(model: str, *, revision: str | None, dtype: str, device: str) -> Local:
    from tutelage.models import load, vocabulary

    tokenizer = load.load_tokenizer(model, revision=revision)
    return Local(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        weights=load.resolve(model, revision).fingerprint,
        tokenizer=vocabulary.tokenizer_fingerprint(tokenizer),
        template=vocabulary.template_fingerprint(tokenizer),
    )


def _sampling(wanted: Generate, *, model: str, place: str, body: Mapping[str, object]) -> Sampling:
    return Sampling(
        model=model,
        place=place,
        max_tokens=wanted.max_tokens if wanted.given is None else 1,  # servers refuse 0
        given=wanted.given,
        temperature=wanted.temperature,
        seed=wanted.seed,
        top_logprobs=wanted.top_logprobs,
        body=body,
    )
