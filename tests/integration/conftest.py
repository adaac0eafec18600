"""One running service for all tests that use it as a user would.

`service` is shared by the whole run; `own` is a namespace in it for one test, which at its end is
deleted with all that is in it, and must leave nothing in the pool.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration import storage
from tests.integration.daemon_process import ServiceProcess, poll, running
from tests.integration.service_api import SYSTEM, Namespace, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = itertools.count(1)
#: Directories of a pool that hold one entry for each thing that exists.
_KEPT = ("volumes", "snapshots", "images")


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    """A running service with a pool of 1 GiB."""
    storage.require(storage.XFS)
    # Not below pytest's own directory: socket paths have 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="shorthorn-service-"))
    try:
        with running(root / "data", pool_size="1G") as process:
            yield process
    finally:
        shutil.rmtree(root)


@pytest.fixture
def own(service: ServiceProcess) -> Iterator[Namespace]:
    """A namespace of the test's own."""
    with namespace(service.api, f"test-{next(_NUMBERS)}") as made:
        yield made
    poll(lambda: leftovers(service) == [], what=f"left in the pool: {leftovers(service)}")
    # An object goes after its data; the next test may count them.
    poll(lambda: going(service) == [], what=f"being deleted: {going(service)}")


def going(service: ServiceProcess) -> list[str]:
    """Return the objects that are being deleted."""
    return [
        f"{kind} {obj['metadata']['name']}"
        for kind in ("Volume", "Snapshot", "ImageCopy", "BackingImage")
        for obj in service.api.list(kind, SYSTEM)
        if "deletionTimestamp" in obj["metadata"]
    ]


def leftovers(service: ServiceProcess) -> list[str]:
    """Return what is in the pool, made and half made."""
    kept = [entry for kind in _KEPT for entry in (service.pool / kind).glob("*")]
    return [str(path) for path in (*kept, *(service.pool / "staging").glob("*/*"))]
