"""The text of a recipe whose answers have not been written yet: its prompts, and answers as long as they may be."""

from pathlib import Path
from typing import Any  # tokenizers of transformers are untyped

from tutelage.data.answers import ROWS
from tutelage.errors import ConfigError
from tutelage.generation.prompts import read_prompts
from tutelage.generation.request import Prompt
from tutelage.generation.task import asking_of
from tutelage.planning.facts import Text
from tutelage.recipe import Recipe

_A_TURN = 4  # tokens that a chat template puts around a turn, roughly


def is_unanswered(recipe: Recipe) -> bool:
    """Whether the data are answers of which none is there."""
    sources = [source.answers for source in recipe.data.sources if source.answers is not None]
    return any(not (Path(place) / ROWS).is_file() for place in sources)


def text_to_come(recipe: Recipe, tokenizer: Any) -> Text:
    """Of every prompt as many answers as are asked; ConfigError where the recipe does not say what is asked."""
    wanted = recipe.generate
    if wanted is None:
        raise ConfigError(
            "CONFIG", "the answers are not there, and the recipe does not say how they are asked; add generate: with "
            "prompts, or run tutelage generate first"
        )  # fmt: skip
    lengths = [
        _n_tokens(prompt, tokenizer) for prompt in read_prompts(wanted, asking_of(recipe, wanted))
        if isinstance(prompt, Prompt)
    ]  # fmt: skip
    if not lengths:
        raise ConfigError("CONFIG", "generate.prompts holds no prompt; check its files")
    asked, longest = sum(lengths) * wanted.samples, recipe.data.max_length
    answered = float(wanted.max_tokens * len(lengths) * wanted.samples)
    whole = asked + answered
    held_out = recipe.data.held_out
    share = (held_out.share or 0.0) if held_out is not None and held_out.sources is None else 0.0
    unique = whole * (1.0 - share)
    return Text(
        trained=trained_tokens(recipe, unique),
        unique=unique,
        held_out=whole * share,
        window=min(float(longest), whole / (len(lengths) * wanted.samples)),
        trained_share=1.0 if recipe.data.train_on == "all" else answered / whole,
        written_share=answered / whole,
    )


def trained_tokens(recipe: Recipe, unique: float) -> float:
    """How many tokens the recipe trains on, of so many different ones."""
    training = recipe.training
    if training.tokens is not None:
        return float(training.tokens)
    if training.steps is not None:
        return float(training.steps * training.batch_tokens)
    assert training.epochs is not None, "recipe rules: one length"
    return training.epochs * unique


def _n_tokens(prompt: Prompt, tokenizer: Any) -> int:
    if prompt.text:
        return len(tokenizer.encode(prompt.text, add_special_tokens=False))
    turns = [content for _, content in prompt.messages]
    return sum(len(tokenizer.encode(turn, add_special_tokens=False)) + _A_TURN for turn in turns)
