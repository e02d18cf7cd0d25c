"""Blocks every connection that leaves this machine; Python imports it at start when this folder is on PYTHONPATH.

So it holds in the test session and in every command that a test starts.
"""

import ipaddress
import socket
from typing import Any


class NetworkBlocked(RuntimeError):
    """Not an OSError, so that no retry or fallback takes it for an ordinary network fault."""


def is_loopback(host: object) -> bool:
    """Whether an address or name can only mean this machine."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_unless_loopback(host: object) -> None:
    """NetworkBlocked unless `host` is this machine."""
    if not is_loopback(host):
        raise NetworkBlocked(f"a test tried to reach {host!r}; tests reach only loopback (downloads: make test)")


def install() -> None:
    """Wraps what can reach out: connecting, sending a datagram, asking for a name."""
    if getattr(socket, "_tutelage_guard", False):
        return
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:  # the signature of the standard library's
        refuse_unless_loopback(host)
        return resolve(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo
    socket._tutelage_guard = True


def _guarded(method: Any) -> Any:
    def guarded(self: socket.socket, *args: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_unless_loopback(args[-1][0])
        return method(self, *args)

    return guarded


install()
