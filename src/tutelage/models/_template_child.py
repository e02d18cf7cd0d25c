"""The process in which chat templates run: Jinja's sandbox under limits of the kernel, nothing of tutelage imported.

Reads one JSON request a line and answers one JSON line: {"compile": …} or {"render": [[variables, …], …]}.  Limits are
set after the imports: no file may be opened or written any more, no process started, memory and output are capped, and
a timer of the kernel ends the process when a request uses too much CPU, whatever the template does.
"""

import contextlib
import datetime
import json
import signal
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

_PAGE_BYTES = 4096


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: its text stays, enclosed in marks when the request names some."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = [jinja2.nodes.Name(name, "load") for name in ("generation_open", "generation_close")]
        return jinja2.nodes.CallBlock(self.call_method("_enclose", list(marks)), [], [], body).set_lineno(line)

    def _enclose(self, before: Any, after: Any, caller: Any) -> str:
        return f"{before or ''}{caller()}{after or ''}"


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, without attributes that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError("a namespace takes no name that begins with an underscore")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox with the same helpers and white-space rules that transformers gives to chat templates."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace}
    made.globals["dict"] = lambda *args, **fields: dict(*args, **fields)
    return made


def _render(template: jinja2.Template, variables: dict[str, Any], *, most_characters: int) -> str:
    parts, length = [], 0
    for part in template.generate(**variables):
        length += len(part)
        if length > most_characters:
            raise MemoryError
        parts.append(part)
    return "".join(parts)


def _limit(memory_bytes: int) -> None:
    """Caps that the kernel keeps, above what this process uses now; what a platform lacks is left out."""
    import resource

    def cap(name: str, value: int) -> None:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))

    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        cap("RLIMIT_AS", int(file.read().split()[0]) * _PAGE_BYTES + memory_bytes)
    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE"):
        cap(name, 0)


def _answer(request: dict[str, Any], templates: dict[str, jinja2.Template], *, most_characters: int) -> dict[str, Any]:
    try:
        if "compile" in request:
            templates["it"] = environment().from_string(request["compile"])
            return {"ok": True}
        texts = [
            [_render(templates["it"], v, most_characters=most_characters) for v in each] for each in request["render"]
        ]
        return {"texts": texts}
    except (MemoryError, OverflowError):
        return {"limit": "memory"}
    except RecursionError:
        return {"limit": "depth"}
    except Exception as error:  # whatever a template provokes is its fault, and is reported as such
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    """Serve until stdin ends; arguments: CPU seconds a request, bytes of memory, characters of output."""
    cpu_s, memory_bytes, most_characters = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for warm in ("{{ [1] | tojson }}{{ strftime_now('%d') }}", "{{ raise_exception('') }}", "{%"):
        with contextlib.suppress(jinja2.TemplateError):  # what Jinja imports late it must import now
            environment().from_string(warm).render()
    _limit(memory_bytes)
    templates: dict[str, jinja2.Template] = {}
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF's default action ends the process
        reply = json.dumps(_answer(json.loads(line), templates, most_characters=most_characters))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
