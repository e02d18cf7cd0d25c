"""Recipe text to a tree of plain values: YAML without its traps, `section.field=value`, and no literal keys.

Against YAML 1.1: 1e-3 is a number, `no` and `on` are text, 010 is ten, 12:30 is text, a key may stand once.
"""

import re
from pathlib import Path
from typing import Any  # Any: YAML holds whatever the user wrote

import yaml

from tutelage.errors import ConfigError
from tutelage.recipe.problems import Problem

_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000  # after aliases are followed: a few lines of them can stand for billions
_SECRET_NAME = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|authorization|bearer|credentials?)$", re.I)
_NOT_SECRET = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask|image|audio|video)_token$")
_SECRET_URL = re.compile(  # of a user's name and password, or signed
    r"[a-z][\w+.-]*://(?:[^/?#\s]*@|\S*[?&](?:[\w-]*(?:signature|token|secret|password|credential)|sig|key|api[_-]?key)=)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"(?<![A-Za-z0-9])(sk-|hf_|gh[pous]_|github_pat_|xox[bp]-|AKIA|AIza)[A-Za-z0-9_-]{20,}")


class _Loader(yaml.SafeLoader):
    """Numbers and words as people read them."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # starts without YAML 1.1's; its type is PyYAML's

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a key that stands twice: YAML says it may not, PyYAML keeps the last in silence."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:int":  # of a layer or a device; JSON has no other names than text
                key.tag = "tag:yaml.org,2002:str"
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise ConfigError("CONFIG", f"line {line}: a field's name must be text")
            if key.value in seen:
                raise ConfigError(
                    "CONFIG", f"line {line}: {key.value} already stands in line {seen[key.value]}; keep one"
                )
            seen[key.value] = line
        return node


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either reading of YAML would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def parse(text: str) -> Any:
    """The value of a YAML text; ConfigError[CONFIG] with the line, and never with the text itself."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MAX_NODES:
            raise ConfigError("CONFIG", f"aliases stand for more than {_MAX_NODES} values; write them out")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError("CONFIG", f"{place}not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError("CONFIG", f"not YAML: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(
            "CONFIG", f"a number cannot be read: {str(error).partition(':')[0].partition(';')[0]}"
        ) from error
    except RecursionError as error:
        raise ConfigError("CONFIG", "nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def dump(tree: Any) -> str:
    """YAML text that `parse`, and every YAML 1.1 reader, turns back into the tree."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below and including this one, each alias counted as often as it is used."""
    if known.get(id(node)) == 0:
        raise ConfigError("CONFIG", f"line {node.start_mark.line + 1}: an alias contains itself")
    if id(node) not in known:
        known[id(node)] = 0
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = list(node.value)
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def read(path: Path) -> dict[str, Any]:
    """The tree in a recipe file; ConfigError[CONFIG] when there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("CONFIG", f"{path}: not found; write a first one: tutelage init soft") from None
    except IsADirectoryError:
        raise ConfigError("CONFIG", f"{path}: a folder; expected a recipe file such as {path}/recipe.yaml") from None
    except OSError as error:
        raise ConfigError("CONFIG", f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError("CONFIG", f"{path}: {len(data)} bytes; a recipe has at most {_MAX_BYTES}")
    try:
        tree = parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise ConfigError("CONFIG", f"{path}: not UTF-8 ({found}); save it as UTF-8") from error
    except ConfigError as error:
        raise ConfigError(error.code, f"{path} {error.message}") from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError("CONFIG", f"{path}: holds {found}; expected sections such as teacher, student, data, loss")
    return tree


def assignment(text: str) -> tuple[tuple[str | int, ...], Any]:
    """`loss.0.weight=0.5` or `loss[0].weight=0.5` as a path and a value."""
    name, equals, value = text.partition("=")
    parts = name.replace("[", ".").replace("]", "").split(".")
    if not equals or not all(re.fullmatch(r"\w+", part) for part in parts):
        found = "an argument with a key in it" if _SECRET_VALUE.search(text) else repr(text)
        raise ConfigError("CONFIG", f"{found} is not section.field=value, such as training.learning_rate=3e-4")
    try:
        parsed = parse(value)
    except ConfigError as error:
        raise ConfigError("CONFIG", f"{name}: the value is {error.message}") from error
    return tuple(int(part) if part.isdecimal() else part for part in parts), parsed


def assigned(tree: Any, path: tuple[str | int, ...], *, value: Any) -> Any:
    """A copy of the tree with a value at a path; LookupError with the place that cannot hold it."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(part, int) and isinstance(tree, list):
        if part >= len(tree):
            raise LookupError(f"there is no [{part}]: the list has {len(tree)}")
        return [assigned(item, rest, value=value) if i == part else item for i, item in enumerate(tree)]
    if isinstance(part, str) and isinstance(tree, dict | None):
        tree = tree or {}
        return {**tree, part: assigned(tree.get(part), rest, value=value)}
    raise LookupError(f"{part} does not fit: there stands a {type(tree).__name__}")


def literal_keys(value: Any, path: tuple[str | int, ...] = ()) -> list[Problem]:
    """Places that hold a key or password itself; the text of it is in no message."""
    if isinstance(value, dict):
        return [found for k, v in value.items() for found in literal_keys(v, (*path, str(k)))]
    if isinstance(value, list | tuple):
        return [found for i, v in enumerate(value) for found in literal_keys(v, (*path, i))]
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    named = bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.match(name)
    if isinstance(value, str) and value and (named or _SECRET_VALUE.search(value) or _SECRET_URL.match(value)):
        return [Problem(path, "holds a literal key; use an environment variable")]
    return []
