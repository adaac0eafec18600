"""The form for new images over real HTTP: where it is, what it refuses, and in which words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.web_site import Browser, Running, running_site

from shorthorn.domain.models import BackingImage, BackingImageSpec, Meta


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_site(tmp_path) as site:
        yield site


@pytest.fixture
async def browser(running: Running) -> AsyncIterator[Browser]:
    async with running.signed_in() as signed_in:
        yield signed_in


async def test_an_image_may_have_any_name_and_has_its_page(
    running: Running, browser: Browser
) -> None:
    spec = BackingImageSpec("download", {"url": "https://example.org/a.qcow2"})
    await running.registries.images.create(BackingImage(Meta("new"), spec))
    shown = await browser.http.get("/images/new")
    assert shown.status_code == 200
    assert "<h1>new</h1>" in shown.text
    assert "<h1>New image</h1>" in (await browser.http.get("/new-image")).text
