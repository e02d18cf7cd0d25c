"""Where requests go and with which key: an address is checked before anything is sent, a key is bound to its host."""

import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from tutelage import console
from tutelage.errors import ConfigError

# Variables that other programs read as the key of one host: a recipe cannot send them elsewhere.
_OWNED = {
    "OPENAI_API_KEY": "api.openai.com",
    "ANTHROPIC_API_KEY": "api.anthropic.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "DEEPSEEK_API_KEY": "api.deepseek.com",
    "GROQ_API_KEY": "api.groq.com",
    "TOGETHER_API_KEY": "api.together.xyz",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "FIREWORKS_API_KEY": "api.fireworks.ai",
    "HF_TOKEN": "router.huggingface.co",
}
SPECIAL = "a link-local or special address, where clouds keep credentials; it is never asked"
_REFUSED_HEADERS = ("authorization", "proxy-authorization", "cookie", "host", "content-length", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that no message, log or file shows."""

    value: str = field(repr=False)

    def __repr__(self) -> str:
        return "'***'"

    __str__ = __repr__

    def scrubbed(self, text: str) -> str:
        """The text without the key, should a server send it back."""
        return text.replace(self.value, "***") if self.value else text

    def scrubbed_bytes(self, data: bytes) -> bytes:
        """The same for bytes."""
        return data.replace(self.value.encode(), b"***") if self.value else data


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A checked address with its key."""

    base_url: str  # without a slash at its end
    host: str
    secret: Secret
    key_header: str = "authorization"
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    variable: str = ""  # where the key stands when the recipe does not say

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return _is_loopback(self.host)


def open_endpoint(
    base_url: str,
    *,
    key_env: str | None = None,
    key_file: str | None = None,
    key_header: str = "authorization",
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    allow_private_host: bool = False,
) -> Endpoint:
    """The endpoint; ConfigError BASE_URL, API_KEY or KEY_IN_CONFIG before anything is sent."""
    host = _checked_host(base_url, allow_private_host=allow_private_host)
    for name, value in {**(headers or {}), key_header: ""}.items():
        own = name.lower() in _REFUSED_HEADERS and name != key_header
        if own or not re.fullmatch(r"[A-Za-z0-9-]+", name):
            raise ConfigError("CONFIG", f"teacher.api.headers: {name!r} cannot be set; the key has its own place")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            wanted = "printable ASCII characters without blanks at the ends"
            raise ConfigError("CONFIG", f"teacher.api.headers: the value of {name!r} is not made of {wanted}")
    secret = _secret(host, key_env=key_env, key_file=key_file)
    url = base_url.rstrip("/")
    return Endpoint(
        base_url=url,
        host=host,
        secret=secret,
        key_header=key_header.lower(),
        headers=dict(headers or {}),
        query=dict(query or {}),
        variable=key_variable(host) if key_env is None and key_file is None else "",
    )


def require_own_keys(endpoints: Iterable[Endpoint]) -> None:
    """ConfigError[API_KEY] where one variable would give its key to two hosts: a-b.example.com and a.b.example.com."""
    hosts: dict[str, str] = {}
    for one in endpoints:
        first = hosts.setdefault(one.variable, one.host)
        if one.variable and first != one.host:
            found = f"{one.variable} is the name of the key for {first} and for {one.host}"
            raise ConfigError(
                "API_KEY", f"{found}, and it may go to one of them only; give key_env or key_file to both"
            )


# --- the address ---
def _checked_host(base_url: str, *, allow_private_host: bool) -> str:
    try:
        parts = urlsplit(base_url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        _refuse(base_url, "is no address")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("KEY_IN_CONFIG", "teacher.api.base_url holds a user or password; give the key by key_env")
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\\]", base_url):
        _refuse(base_url, "is not http:// or https:// with a host")
    if parts.query or parts.fragment:
        _refuse(base_url, "has a query; put it into teacher.api.query")
    address = _address(host)
    if _is_special(host):
        _refuse(base_url, f"is {SPECIAL}")
    if _is_loopback(host) or allow_private_host:
        return host
    if parts.scheme == "http":
        _refuse(base_url, "is remote without TLS; use https or --allow-private-host")
    if address is not None and not address.is_global:
        _refuse(base_url, "is a private address; if it is meant, use --allow-private-host")
    return host


def _refuse(base_url: str, why: str) -> NoReturn:
    shown = re.sub(r"//[^/@]*@", "//***@", base_url)[:100]
    raise ConfigError("BASE_URL", f"{shown!r} {why}")


def is_name(host: str) -> bool:
    """Whether somebody else says which address it is."""
    return _address(host) is None


def forbidden(host: str, event: str, info: Mapping[str, Any]) -> ConfigError | None:
    """What the trace of a connection shows before a byte is sent: the error where a name leads to a special address.

    A name is looked up for each new connection, so what it led to before says nothing.
    """
    if event != "connection.connect_tcp.complete":
        return None
    address = str(info["return_value"].get_extra_info("server_addr")[0])
    return ConfigError("BASE_URL", f"{host} leads to {address}, {SPECIAL}") if _is_special(address) else None


def _is_special(host: str) -> bool:
    """Whether it is an address that is never asked."""
    address = _address(host)
    return address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address in any way of writing that the system takes: 127.1 and 2130706433 are 127.0.0.1."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


# --- the key ---
def key_variable(host: str) -> str:
    """The variable that holds the key of a host and of no other: TUTELAGE_KEY__api_openai_com."""
    return "TUTELAGE_KEY__" + re.sub(r"[^A-Za-z0-9]", "_", host)


def _secret(host: str, *, key_env: str | None, key_file: str | None) -> Secret:
    own = key_variable(host)
    if key_file is not None:
        return _checked(_read_key(Path(key_file)), host=host, where=key_file)
    if key_env is None:
        return _checked(os.environ.get(own, ""), host=host, where=own)
    owner = _OWNED.get(key_env, host)
    if owner != host:
        raise ConfigError(
            "API_KEY", f"{key_env} is the key of {owner}, and base_url is at {host}; export {own} instead"
        )
    if not os.environ.get(key_env, "").strip():
        raise ConfigError("API_KEY", f"the variable {key_env} is not set; export it with the key for {host}")
    return _checked(os.environ[key_env], host=host, where=key_env)


def _read_key(path: Path) -> str:
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            console.warning("PERM", f"key file {path} is open to others; run: chmod 600 {path}")
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError("API_KEY", f"key file {path} cannot be read ({error.strerror})") from None


def _checked(value: str, *, host: str, where: str) -> Secret:
    key = value.strip()
    if re.search(r"[^\x21-\x7e]|[\"']", key):
        raise ConfigError("API_KEY", f"the key for {host} in {where} contains whitespace, quotes or other characters")
    return Secret(key)
