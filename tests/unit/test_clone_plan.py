"""What a clone waits for, when it fails and when it goes on: the plan, and the reconciler's part.

Aspects: where it begins; each thing that it waits for, named; what it fails of; that it goes on by
itself when that is mended; its source going away while it is made; circles.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.domain.copies import plan_copies
from shorthorn.domain.copy_scene import Origin
from shorthorn.domain.copy_steps import Refuse, RemoveCopy, Wait
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    BackingImageStatus,
    Condition,
    CopyState,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Pool,
    PoolSpec,
    PoolStatus,
    Volume,
)
from shorthorn.domain.names import copy_name

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 1 << 30
CHECKSUM, OTHER = "c" * 128, "d" * 128
READY = (Condition("Ready", True, "Ready"),)
FAILED = (
    Condition("Ready", False, "NoSpace", "full"),
    Condition("Failed", True, "NoSpace", "full"),
)


def pool(uuid: str, room: int = 9 * GIB) -> Pool:
    return Pool(Meta(uuid), PoolSpec(f"node-{uuid}", uuid, "/"), PoolStatus(available_bytes=room))


def clone_of(name: str = "origin", **spec: Any) -> BackingImage:
    parameters = {"backing-image": name, **spec.pop("parameters", {})}
    return BackingImage(Meta("clone"), BackingImageSpec("clone", parameters, **spec))


def origin(
    conditions: tuple[Condition, ...] = READY,
    *,
    source: str = "upload",
    parameters: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    deleting: bool = False,
    **status: Any,
) -> Origin:
    status = {"checksum": CHECKSUM, "uuid": "u1", **status}
    image = BackingImage(
        Meta("origin", annotations=annotations or {}, deleting=deleting),
        BackingImageSpec(source, parameters or {}),
        BackingImageStatus(conditions=conditions, **status),
    )
    spec = ImageCopySpec("origin", "u1", "node-b", "b", source)
    return Origin(image, [ImageCopy(Meta("origin-b"), spec, ImageCopyStatus(CopyState.READY))])


def plan(clone: BackingImage, source: Origin | None, copies: tuple[ImageCopy, ...] = ()) -> Any:
    return plan_copies(clone, copies, [pool("a"), pool("b", 3 * GIB)], [], NOW, source)


def test_a_clone_is_made_beside_its_origin() -> None:
    (step,) = plan(clone_of(), origin())
    assert (step.pool.spec.pool_uuid, step.source_type) == ("b", "clone")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "does not exist"),
        (origin(deleting=True), "is being deleted"),
        (origin(()), "to be ready"),
        (origin(checksum=""), "checksum"),
        # Fetched again by itself, and tried again by somebody.
        (origin(FAILED, source="download", size_bytes=GIB), "to be ready"),
        (origin(FAILED, annotations={"shorthorn.io/retry-at": "t1"}), "to be ready"),
        (origin((), source="clone", parameters={"backing-image": "clone"}), "delete one of them"),
    ],
)
def test_a_clone_waits_and_says_for_what(source: Origin | None, words: str) -> None:
    (step,) = plan(clone_of(), source)
    assert isinstance(step, Wait)
    assert (step.reason, step.until) == ("SourceNotReady", None)
    assert "waits for" in step.message
    assert "backing image origin" in step.message
    assert words in step.message


TRIED = {"shorthorn.io/retry-at": "t1", "shorthorn.io/retried": "t1"}


@pytest.mark.parametrize(
    ("clone", "source", "reason", "words"),
    [
        (clone_of(), origin(FAILED), "SourceFailed", "NoSpace: full"),
        (clone_of(), origin(FAILED, source="download"), "SourceFailed", "tried again"),
        (clone_of(), origin(FAILED, annotations=TRIED), "SourceFailed", "origin"),
        (clone_of(checksum=OTHER), origin(), "ChecksumMismatch", OTHER),
        (clone_of("clone"), origin(), "InvalidArgument", "another"),
        (clone_of(""), None, "InvalidArgument", "another"),
        (clone_of(parameters={"encryption": "encrypt"}), origin(), "UnsupportedSource", "encrypt"),
    ],
)
def test_a_clone_fails_of_what_somebody_must_mend(
    clone: BackingImage, source: Origin | None, reason: str, words: str
) -> None:
    (step,) = plan(clone, source)
    assert isinstance(step, Refuse)
    assert step.reason == reason
    assert words in step.message


def test_the_words_of_a_failure_do_not_grow_from_clone_to_clone() -> None:
    told = Condition("Failed", True, "SourceFailed", "long words")
    (step,) = plan(clone_of(), origin((told,), source="clone"))
    assert "long words" not in step.message


def begun(state: CopyState, reason: str) -> ImageCopy:
    parameters = {"backing-image": "origin", "uuid": "u1"}
    spec = ImageCopySpec("clone", "u", "node-a", "a", "clone", parameters)
    return ImageCopy(Meta("clone-a"), spec, ImageCopyStatus(state, reason=reason))


LOST = [None, origin(deleting=True), origin(uuid="u2"), origin((), uuid=""), origin(FAILED)]


@pytest.mark.parametrize("source", LOST)
@pytest.mark.parametrize(
    "copy",
    [begun(CopyState.FAILED, "NotFound"), begun(CopyState.IN_PROGRESS, "Unavailable")],
    ids=["deleted", "away"],
)
def test_a_clone_whose_origin_goes_away_begins_anew(source: Origin | None, copy: ImageCopy) -> None:
    steps = plan(clone_of(), source, (copy,))
    assert [type(step) for step in steps] == [Wait, RemoveCopy]
    assert "origin" in steps[0].message


@pytest.mark.parametrize(
    ("copy", "source"),
    [
        (begun(CopyState.FAILED, "NoSpace"), None),
        (begun(CopyState.FAILED, "NotFound"), origin()),  # or it would be made again for ever
        (begun(CopyState.IN_PROGRESS, "Unavailable"), origin()),
        (begun(CopyState.IN_PROGRESS, ""), None),
    ],
)
def test_what_hinders_a_clone_otherwise_leaves_its_copy(
    copy: ImageCopy, source: Origin | None
) -> None:
    assert plan(clone_of(), source, (copy,)) == ()


def test_a_clone_that_was_ready_is_not_begun_anew() -> None:
    clone = clone_of()
    ready = dataclasses.replace(clone, status=BackingImageStatus(size_bytes=GIB))
    assert plan(ready, None, (begun(CopyState.FAILED, "NotFound"),)) == ()


# --- the reconciler's part


class Host:
    """Two images: `clone`, and `origin`, of which it is made; changes are looked at in turn."""

    def __init__(self) -> None:
        self.images: MemoryRegistry[BackingImage] = MemoryRegistry(BackingImage)
        self.copies: MemoryRegistry[ImageCopy] = MemoryRegistry(ImageCopy)
        self.pools: MemoryRegistry[Pool] = MemoryRegistry(Pool)
        volumes: MemoryRegistry[Volume] = MemoryRegistry(Volume)
        self.reconciler = BackingImageReconciler(self.images, self.copies, self.pools, volumes)

    async def add_pool(self) -> None:
        made = await self.pools.create(Pool(Meta("a"), PoolSpec("node-a", "a", "/")))
        await self.pools.update_status(dataclasses.replace(made, status=pool("a").status))

    async def create(self, name: str, source: str, parameters: dict[str, str]) -> None:
        await self.images.create(BackingImage(Meta(name), BackingImageSpec(source, parameters)))
        await self.changed(name)

    async def changed(self, name: str) -> None:
        """Look at an image, and at those that have to be looked at because of it."""
        for image in (name, *self.reconciler.clones_of_image(name)):
            for _ in range(20):
                if await self.reconciler.reconcile(image) is None:
                    break
            else:
                raise AssertionError(f"{image} does not settle")

    async def copy_becomes(self, image: str, state: CopyState, **status: Any) -> None:
        copy = await self.copies.find(copy_name(image, "a"))
        assert copy is not None
        if state is CopyState.READY:
            status |= {"checksum": CHECKSUM, "size_bytes": GIB}
        told = ImageCopyStatus(state, **status)
        await self.copies.update_status(dataclasses.replace(copy, status=told))
        await self.changed(image)

    async def removed(self, image: str) -> None:
        """Do what a copy's node does when the copy is deleted."""
        copy = await self.copies.find(copy_name(image, "a"))
        assert copy is not None
        assert copy.meta.deleting
        bare = dataclasses.replace(copy.meta, finalizers=())
        await self.copies.update(dataclasses.replace(copy, meta=bare))
        await self.changed(image)

    async def said(self) -> tuple[bool, str, str]:
        """Return whether the clone has failed, its reason and its message."""
        clone = await self.images.find("clone")
        assert clone is not None
        (ready,) = [c for c in clone.status.conditions if c.type == "Ready"]
        assert not ready.is_true
        return clone.failure is not None, ready.reason, ready.message

    async def is_begun(self) -> bool:
        return await self.copies.find(copy_name("clone", "a")) is not None


@pytest.fixture
async def host() -> Host:
    made = Host()
    await made.add_pool()
    await made.create("clone", "clone", {"backing-image": "origin"})
    return made


async def test_a_clone_that_comes_first_begins_when_its_origin_is_ready(host: Host) -> None:
    failed, reason, message = await host.said()
    assert (failed, reason) == (False, "SourceNotReady")
    assert "origin, which does not exist" in message
    await host.create("origin", "download", {"url": "http://images.test/disk.raw"})
    assert "to be ready" in (await host.said())[2]
    assert not await host.is_begun()
    await host.copy_becomes("origin", CopyState.READY)
    copy = await host.copies.find(copy_name("clone", "a"))
    assert copy is not None
    assert copy.spec.expected_checksum == CHECKSUM
    await host.copy_becomes("clone", CopyState.READY)
    assert host.reconciler.clones_of_image("origin") == []


async def test_a_clone_goes_on_when_its_failed_origin_is_tried_again(host: Host) -> None:
    await host.create("origin", "download", {"url": "http://images.test/disk.raw"})
    await host.copy_becomes("origin", CopyState.FAILED, reason="NoSpace", message="full")
    failed, reason, message = await host.said()
    assert (failed, reason, "NoSpace: full" in message) == (True, "SourceFailed", True)
    image = await host.images.find("origin")
    assert image is not None
    meta = dataclasses.replace(image.meta, annotations={"shorthorn.io/retry-at": "t1"})
    await host.images.update(dataclasses.replace(image, meta=meta))
    await host.changed("origin")
    assert (await host.said())[:2] == (False, "SourceNotReady")
    await host.removed("origin")
    await host.copy_becomes("origin", CopyState.READY)
    assert await host.is_begun()


async def test_a_clone_waits_while_its_origin_is_deleted_and_made_again(host: Host) -> None:
    await host.create("origin", "download", {"url": "http://images.test/disk.raw"})
    await host.images.delete("origin")
    await host.changed("origin")
    assert "is being deleted" in (await host.said())[2]
    await host.removed("origin")
    await host.changed("origin")
    failed, _, message = await host.said()
    assert (failed, "does not exist" in message) == (False, True)


async def test_a_clone_whose_origin_went_while_it_was_made_waits_for_the_next(host: Host) -> None:
    await host.create("origin", "download", {"url": "http://images.test/disk.raw"})
    await host.copy_becomes("origin", CopyState.READY)
    await host.images.delete("origin")
    await host.changed("origin")
    await host.removed("origin")
    await host.changed("origin")
    await host.copy_becomes("clone", CopyState.FAILED, reason="NotFound", message="deleted")
    assert (await host.said())[:2] == (False, "SourceNotReady")
    await host.removed("clone")
    assert (await host.said())[:2] == (False, "SourceNotReady")
    await host.create("origin", "download", {"url": "http://images.test/other.raw"})
    await host.copy_becomes("origin", CopyState.READY)
    assert await host.is_begun()


async def test_a_clone_that_goes_on_without_a_pool_says_so(host: Host) -> None:
    await host.create("origin", "download", {"url": "http://images.test/disk.raw"})
    await host.copy_becomes("origin", CopyState.FAILED, reason="NoSpace", message="full")
    assert (await host.said())[0]
    full = await host.pools.find("a")
    assert full is not None
    gone = dataclasses.replace(full.status, conditions=(Condition("Ready", False, "Silent"),))
    image = await host.images.find("origin")
    assert image is not None
    ready = dataclasses.replace(image.status, conditions=READY, checksum=CHECKSUM)
    await host.images.update_status(dataclasses.replace(image, status=ready))
    await host.pools.update_status(dataclasses.replace(full, status=gone))
    await host.reconciler.reconcile("clone")
    assert (await host.said())[:2] == (False, "NoPool")


async def test_a_deleted_clone_waits_for_nothing(host: Host) -> None:
    assert host.reconciler.clones_of_image("origin") == ["clone"]
    await host.images.delete("clone")
    await host.changed("clone")
    assert host.reconciler.clones_of_image("origin") == []
