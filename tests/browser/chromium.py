"""Debian's Chromium, and a visitor in it: a browser context that has nothing to complain of.

Owns: how the browser is started, and what counts as a complaint: errors on the console (refusals
by the Content-Security-Policy are among them), and exceptions in scripts.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

EXECUTABLE = "/usr/bin/chromium"
#: Nothing of the network but our pages; no sandbox, since tests run as root.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 20_000
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextlib.asynccontextmanager
async def chromium(*options: str) -> AsyncIterator[Browser]:
    """A running browser. `options`: of the command line, besides the usual ones."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=EXECUTABLE, args=[*OPTIONS, *options]
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visitor:
    """Somebody with a browser of their own. `url`: where the service's pages begin.

    `expected`: patterns of complaints that a test brings about.
    """

    context: BrowserContext
    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expect_complaint(self, *patterns: str) -> None:
        self.expected += patterns

    async def go(self, path: str) -> Page:
        """Open a page of the service."""
        await self.page.goto(f"{self.url}{path}")
        return self.page

    def unexpected(self) -> list[str]:
        """Return the complaints that no test brought about."""
        return [c for c in self.complaints if not any(re.search(e, c) for e in self.expected)]

    def _listen(self) -> None:
        self.context.on("console", self._said)
        self.context.on("weberror", lambda error: self.complaints.append(f"threw: {error.error}"))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            where = message.location.get("url", "")
            self.complaints.append(f"{message.type}: {message.text} ({where})")


@contextlib.asynccontextmanager
async def visiting(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visitor]:
    """A visitor without a session, unless `options` (of a context) hold a `storage_state`.

    At the end every complaint that was not expected fails the test.
    """
    context = await browser.new_context(**{"viewport": DESKTOP, "base_url": url, **options})
    context.set_default_timeout(PATIENCE_MS)
    try:
        visitor = Visitor(context, await context.new_page(), url)
        visitor._listen()
        yield visitor
        assert not visitor.unexpected(), "\n".join(visitor.unexpected())
    finally:
        await context.close()
