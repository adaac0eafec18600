"""Image bytes keep their promises on this host and behind a peer server, over real mTLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.contract.image_bytes_suite import ImageBytesSuite
from tests.integration.bytes_host import Host, host_in
from tests.integration.peers import Tls, behind_peer_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.xfs]


class TestLocalBytes(ImageBytesSuite):
    """`images.local_bytes`."""

    @pytest.fixture
    async def host(self, xfs_dir: Path) -> AsyncIterator[Host]:
        async with host_in(xfs_dir) as host:
            yield host


class TestPeerBytes(ImageBytesSuite):
    """`images.peer_bytes`."""

    @pytest.fixture
    async def host(self, xfs_dir: Path) -> AsyncIterator[Host]:
        async with host_in(xfs_dir) as host, behind_peer_server(host, Tls()):
            yield host
