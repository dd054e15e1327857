"""Where a SuperLink is."""

from __future__ import annotations

import pytest

from fedem_flwr.errors import InputError
from fedem_flwr.network.link import Address


@pytest.mark.parametrize(
    ("place", "host", "loopback"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("localhost:1", "localhost", True),
        ("super_link-2:65535", "super_link-2", False),
        ("10.0.0.5:8000", "10.0.0.5", False),
        ("[2001:db8::5]:8000", "2001:db8::5", False),
        ("a.example.org:8000", "a.example.org", False),
    ],
)
def test_places(place: str, host: str, loopback: bool) -> None:
    address = Address(place)
    assert (address.host, address.port, address.loopback) == (host, int(place.rpartition(":")[2]), loopback)


BAD = [
    "",
    "h",
    "h:",
    ":9",
    "h:0",
    "h:65536",
    "h:²",
    "h:٣",
    "h:-1",
    "300.1.1.1:9",
    "1.2.3:9",
    "::1:9",
    "[h]:9",
    "[::1:9",
]
BAD += ["[1.2.3.4]:9", "http://h:9", "a b:80", "h:9/x", "-h:9", "h.:9", "h:000000080"]


@pytest.mark.parametrize("place", BAD)
def test_what_is_no_place_is_told(place: str) -> None:
    with pytest.raises(InputError, match="write host:port"):
        Address(place)
