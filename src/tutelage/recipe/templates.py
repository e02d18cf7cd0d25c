"""The recipes that `tutelage init` writes: the files of tutelage/recipes, one a technique."""

from pathlib import Path

from tutelage import io, plugins
from tutelage.errors import ConfigError

_FOLDER = Path(plugins.__file__).parent / "recipes"


def techniques() -> tuple[str, ...]:
    """The names that `init` knows."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def template(technique: str) -> str:
    """The commented recipe of a technique; ConfigError[CONFIG] with the nearest name when there is none."""
    from tutelage.recipe.problems import unknown_name

    if technique not in techniques():
        raise ConfigError("CONFIG", f"technique {unknown_name(technique, techniques())}")
    return (_FOLDER / f"{technique}.yaml").read_text(encoding="utf-8")


def init(technique: str = "soft", *, output: str | Path = "recipe.yaml", force: bool = False) -> Path:
    """Writes the commented recipe of a technique; ConfigError[EXISTS] when a file is there, unless forced."""
    path, text = Path(output), template(technique)
    if path.is_dir():
        raise ConfigError("EXISTS", f"{path} is a folder; name a file in it: --output {path / 'recipe.yaml'}")
    if path.exists() and not force:
        raise ConfigError("EXISTS", f"{path} is already there; --force overwrites it, or choose another --output")
    io.write_text(path, text, private=False)
    return path
