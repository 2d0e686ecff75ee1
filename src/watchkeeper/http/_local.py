"""Checks whether a request comes from this machine directly, without a proxy."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Scope

# Headers that proxies, load balancers and CDNs add: with any of them the peer is not the client.
_PROXY_HEADER: Final = re.compile(
    r"cdn-loop|client-ip|forwarded|forwarded-for|front-end-https|surrogate-capability|true-client-ip|via"
    r"|wl-proxy-client-ip|x-client-ip|x-cloud-trace-context|x-cluster-client-ip|x-host|x-https|x-proto"
    r"|x-proxyuser-ip|x-queue-start|x-real-ip|x-remote-addr|x-remote-ip|x-request-start|x-scheme"
    r"|x-url-scheme|x-varnish"
    # By prefix.
    r"|(akamai|cf|fastly|fly|incap|proxy)-.*|x-(amz|forwarded).*"
    r"|x-(akamai|appengine|arr|azure|envoy|haproxy|nginx|original|proxy|sucuri|vercel)-.*",
    re.DOTALL,
)
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")
# nginx's bare proxy_pass speaks HTTP/1.0 and adds no header at all; granian calls that version "1".
_VERSIONS: Final = frozenset(("1.1", "2", "2.0", "3", "3.0"))


def is_local(scope: Scope) -> bool:
    """Return whether the client is on this machine and connects to this server directly.

    All of these must hold: a loopback peer, a loopback address of this server, HTTP/1.1 or later, exactly one
    `Host`, which is loopback, no other host in the request target, and no header of a proxy. A unix socket's
    peer is unknown and therefore not local.
    """
    client, server = scope.get("client"), scope.get("server")
    if not client or not is_loopback(str(client[0])) or scope.get("http_version") not in _VERSIONS:
        return False
    # Not every server reports its own address.
    if (server and not is_loopback(str(server[0]))) or _names_host(scope):
        return False
    hosts = []
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif _is_from_proxy(name):
            return False
    return len(hosts) == 1 and _is_loopback_host(hosts[0])


def is_loopback(address: str) -> bool:
    """Return whether an IP address or host name is this machine's loopback."""
    if address.lower() == "localhost":
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def _names_host(scope: Scope) -> bool:
    # The host of an absolute target overrides `Host` (RFC 9112, 3.2.2), and clients send one to proxies only.
    # uvicorn with h11 passes it on; httptools and granian drop the host.
    return b"://" in (scope.get("raw_path") or b"") or "://" in scope["path"]


def _is_from_proxy(name: bytes) -> bool:
    # Some proxies write underscores, and some servers do not lower-case names.
    plain = name.decode("latin-1").lower().replace("_", "-")
    return _PROXY_HEADER.fullmatch(plain) is not None


def _is_loopback_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    return match is not None and is_loopback(match[1].decode("ascii").strip("[]"))
