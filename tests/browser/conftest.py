"""One running service and one browser for all tests of the web page.

`visitor` is signed in and has a browser context of its own; `stranger` has no session. `images`
makes images that are gone at the end, `own` is a namespace of the test's own. Visitors ask for
`images`, so that they have left before images go: a page that saw that would complain of it.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, StorageState, expect
from tests.browser.chromium import PATIENCE_MS, Visitor, chromium, visiting
from tests.browser.scenery import Images, url_of
from tests.integration import storage
from tests.integration.daemon_process import ServiceProcess, running
from tests.integration.kubectl import Kubectl, binaries, require
from tests.integration.service_api import Namespace, namespace

_NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests on one loop: a browser belongs to the loop that started it."""
    for item in items:
        item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        item.add_marker(pytest.mark.root)
        item.add_marker(pytest.mark.xfs)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured; nothing is judged by it."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session", autouse=True)
def _patience() -> None:
    expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    """A running service that stays as it is: tests that kill one have their own."""
    storage.require(storage.XFS)
    # Not below pytest's own directory: socket paths have 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="shorthorn-browser-"))
    try:
        with running(root / "data", pool_size="1G") as process:
            yield process
    finally:
        shutil.rmtree(root)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A running Chromium."""
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def signed_in(browser: Browser, service: ServiceProcess) -> StorageState:
    """The cookies of somebody who used a login link."""
    return await cookies_of(browser, service)


async def cookies_of(browser: Browser, service: ServiceProcess) -> StorageState:
    """Sign in at a service, once; return what the browser keeps of it."""
    async with visiting(browser, url_of(service)) as first:
        await first.page.goto(login_link(service))
        await expect(first.page.get_by_role("heading", name="Overview")).to_be_visible()
        return await first.context.storage_state()


def login_link(service: ServiceProcess) -> str:
    """Return a new one-time link, as a user gets one."""
    told = service.run("login")
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(
    browser: Browser, service: ServiceProcess, signed_in: StorageState, images: Images
) -> AsyncIterator[Visitor]:
    """Somebody who is signed in."""
    async with visiting(browser, url_of(service), storage_state=signed_in) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def other_visitor(
    browser: Browser, service: ServiceProcess, signed_in: StorageState, images: Images
) -> AsyncIterator[Visitor]:
    """Somebody else who is signed in."""
    async with visiting(browser, url_of(service), storage_state=signed_in) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def stranger(browser: Browser, service: ServiceProcess) -> AsyncIterator[Visitor]:
    """Somebody without a session."""
    async with visiting(browser, url_of(service)) as made:
        yield made


@pytest.fixture
def images(service: ServiceProcess) -> Iterator[Images]:
    """Makes images; what the test and its visitors made is gone at the end."""
    made = Images(service)
    yield made
    made.remove_all()


@pytest.fixture
def own(service: ServiceProcess) -> Iterator[Namespace]:
    """A namespace of the test's own."""
    with namespace(service.api, f"test-{next(_NUMBERS)}") as made:
        yield made


@pytest.fixture
def kubectl(service: ServiceProcess, tmp_path: Path) -> Kubectl:
    """The machine's kubectl."""
    return Kubectl(require(binaries()[0]), service.data_dir / "kubeconfig", tmp_path)
