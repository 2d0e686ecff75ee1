from typing import Any

import pytest

from support.asgi import LOCAL_HOST, scope_of
from watchkeeper.http import is_local
from watchkeeper.http._local import is_loopback


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),  # noqa: S104 - only checked
        ("::", False),
        ("128.0.0.1", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::127.0.0.1", False),
        ("127.1", False),
        ("0177.0.0.1", False),
        ("localhost.evil.example", False),
        ("evil.localhost", False),
        ("", False),
        ("unix", False),
    ],
)
def test_is_loopback(address: str, expected: bool) -> None:  # noqa: FBT001 - a table
    """Only addresses that are certainly this machine count."""
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"client": ("127.9.9.9", 1)},
        {"client": ("::1", 1)},
        {"client": ["::ffff:127.0.0.1", "41662"]},
        {"http_version": "2"},
        {"http_version": "3"},
        {"headers": [(b"host", b"localhost")]},
        {"headers": [(b"host", b"LocalHost:3001")]},
        {"headers": [(b"host", b"127.0.0.53:80")]},
        {"headers": [(b"host", b"[::1]:3001")]},
        {"headers": [(b"host", b"[::1]")]},
        {"headers": [LOCAL_HOST, (b"user-agent", b"curl"), (b"x-request-id", b"a")]},
        {"server": ("::1", 3001)},
        {"server": ("localhost", 3001)},
        {"server": None},
        {"raw_path": None},
    ],
)
def test_a_direct_request_of_this_machine_is_local(more: dict[str, Any]) -> None:
    """A loopback peer that requests a loopback host over HTTP/1.1 or later."""
    assert is_local(scope_of("/metrics", **more))


@pytest.mark.parametrize(
    "more",
    [
        {"client": None},
        {"client": ("10.0.0.7", 1)},
        {"client": ("testclient", 1)},
        {"client": ("", 0)},
        {"http_version": "1.0"},
        {"http_version": "0.9"},
        {"http_version": "1"},
        {"http_version": ""},
        {"headers": []},
        {"headers": [LOCAL_HOST, LOCAL_HOST]},
        *(
            {"headers": [(b"host", host)]}
            for host in (
                *(b"", b"backend:3001", b"evil.localhost", b"localhost.evil.example", b"[::1", b"localhost "),
                *(b"127.0.0.1.evil.example", b"127.0.0.1@evil.example", b"localhost:port"),
                *(b"local\xc4\xa7ost", b"192.168.1.5:3001"),
            )
        ),
    ],
)
def test_other_peers_versions_and_hosts_are_not_local(more: dict[str, Any]) -> None:
    """A unix socket's unknown peer, nginx's bare HTTP/1.0, a rebound name."""
    assert not is_local(scope_of("/metrics", **more))


@pytest.mark.parametrize(
    "more",
    [
        {"server": ("10.0.0.1", 3001)},
        {"server": ("0.0.0.0", 3001)},  # noqa: S104 - a server's own address
        {"server": ("::", 3001)},
        {"server": ("backend", 3001)},
        {"server": ["/run/backend.sock", None]},
    ],
)
def test_a_server_address_off_loopback_is_not_local(more: dict[str, Any]) -> None:
    """The address that the server reports counts, whatever `HOST` says."""
    assert not is_local(scope_of("/metrics", **more))


@pytest.mark.parametrize(
    "more",
    [
        {"path": "http://evil.example/metrics"},
        {"raw_path": b"http://evil.example/metrics"},
        {"raw_path": b"HTTPS://evil.example/metrics"},
        {"raw_path": b"/apihttp://evil.example/metrics"},
    ],
)
def test_a_target_that_names_a_host_is_not_local(more: dict[str, Any]) -> None:
    """RFC 9112, 3.2.2: it overrides `Host`, also behind a root path."""
    assert not is_local(scope_of("/metrics") | more)


@pytest.mark.parametrize(
    "name",
    [
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded"),
        *("x-forwarded-prefix", "X-Forwarded-For", "x_forwarded_for", "x-real-ip", "via"),
        *("cf-connecting-ip", "cf-ray", "true-client-ip", "x-client-ip", "x-envoy-external-address"),
        *("x-original-forwarded-for", "x-amzn-trace-id", "cdn-loop", "fly-client-ip", "proxy-client-ip"),
        *("x-host", "x-url-scheme", "front-end-https", "Front-End-Https", "x-nginx-proxy", "x-varnish"),
        *("x-request-start", "x-sucuri-clientip", "akamai-origin-hop", "x-cloud-trace-context"),
    ],
)
def test_a_proxy_header_is_not_local(name: str) -> None:
    """Its sender is between the client and this server, whatever the value."""
    assert not is_local(scope_of("/metrics", headers=[LOCAL_HOST, (name.encode(), b"")]))
