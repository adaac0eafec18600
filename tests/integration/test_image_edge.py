"""`shorthorn image upload` and `download` through the real web edge; only the pool is a fake."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fakes.memory_bytes import MemoryBytes
from tests.integration.image_shell import shell_of_site
from tests.integration.web_site import running_site

from shorthorn.domain.image_bytes import ArtifactForm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.image_shell import Shell

MIB = 1 << 20
CONTENT = random.Random(3).randbytes(5 * MIB)


@pytest.fixture
async def pool() -> MemoryBytes:
    return MemoryBytes()


@pytest.fixture
async def user(tmp_path: Path, pool: MemoryBytes) -> AsyncIterator[Shell]:
    async with (
        running_site(tmp_path, image_bytes=pool) as site,
        shell_of_site(tmp_path, site.url) as made,
    ):
        pool.find_length, pool.completed = made.find_length, made.make_ready
        (tmp_path / "disk").write_bytes(CONTENT)
        yield made


@pytest.mark.parametrize("cuts", [pytest.param([], id="whole"), pytest.param([MIB, MIB], id="cut")])
async def test_an_upload_arrives_whole(user: Shell, pool: MemoryBytes, cuts: list[int]) -> None:
    pool.cuts = cuts
    await user.does("upload", "golden", "disk")
    assert bytes(pool.uploads["golden"]) == CONTENT
    assert pool.cuts == []


@pytest.mark.parametrize("form", list(ArtifactForm))
async def test_every_form_arrives_whole_over_a_cut(
    user: Shell, pool: MemoryBytes, form: ArtifactForm
) -> None:
    await user.make_image("golden", CONTENT)
    pool.images["golden", form] = CONTENT
    pool.cuts = [2 * MIB]
    await user.does("download", "golden", "got", "--as", form)
    assert (user.folder / "got").read_bytes() == CONTENT
    assert pool.cuts == []


async def test_what_the_edge_refuses_is_said(user: Shell) -> None:
    await user.make_image("golden", CONTENT)
    said = await user.is_refused("download", "golden", "--retry-for", "1")
    assert "golden not found" in said
    token = {"SHORTHORN_TOKEN": "another-users-token"}
    said = await user.is_refused("download", "golden", env=token)
    assert "does not know your token" in said
