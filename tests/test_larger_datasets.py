"""Known data sets that come as a compressed file, without a published checksum, or not at all: from a loopback server."""

from __future__ import annotations

from test_download import BODY, Server, fetch, leftovers, server  # noqa: F401 (a fixture)
