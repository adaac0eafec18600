"""Backing images: placing copies, gathering their states, seeing to their end."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.domain.errors import Unavailable
from shorthorn.domain.image_bytes import IMAGE_UUID, VERIFY_AT
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    Condition,
    CopyState,
    ImageCopy,
    ImageCopySpec,
    Meta,
    Pool,
    PoolSpec,
    PoolStatus,
    Volume,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)
from shorthorn.domain.names import copy_name
from shorthorn.domain.planning import DATA_FINALIZER, IMAGE_FINALIZER

POOL = "11111111-0000-4000-8000-000000000000"
NAME = "golden"
COPY = copy_name(NAME, POOL)
CHECKSUM = "c" * 128
STRAY = ImageCopySpec(NAME, "0" * 8, "node-a", POOL, "download")
WEB = {"url": "http://images.test/disk.qcow2"}


class Host:
    """The registries, which outlive the process; `reconciler` is the process."""

    def __init__(self) -> None:
        self.images: MemoryRegistry[BackingImage] = MemoryRegistry(BackingImage)
        self.copies: MemoryRegistry[ImageCopy] = MemoryRegistry(ImageCopy)
        self.pools: MemoryRegistry[Pool] = MemoryRegistry(Pool)
        self.volumes: MemoryRegistry[Volume] = MemoryRegistry(Volume)
        self.restart()

    def restart(self) -> None:
        self.reconciler = BackingImageReconciler(self.images, self.copies, self.pools, self.volumes)

    async def add_pool(self) -> None:
        pool = await self.pools.create(Pool(Meta(POOL), PoolSpec("node-a", POOL, "/pool")))
        await self.pools.update_status(
            dataclasses.replace(pool, status=PoolStatus(1 << 40, 0, 1 << 40))
        )

    async def add_volume(self, state: VolumeState = VolumeState.READY) -> None:
        spec = VolumeSpec("pvc-1", "node-a", POOL, 1 << 20)
        volume = await self.volumes.create(Volume(Meta("pvc-1"), spec))
        await self.volumes.update_status(
            dataclasses.replace(volume, status=VolumeStatus(state=state))
        )

    async def create(
        self, source: str = "download", parameters: dict[str, str] = WEB, **spec: Any
    ) -> None:
        await self.images.create(
            BackingImage(Meta(NAME), BackingImageSpec(source, parameters, **spec))
        )

    async def settle(self) -> float | None:
        """Reconcile until nothing is to be done now; return when it is to be looked at again."""
        for _ in range(20):
            delay_s = await self.reconciler.reconcile(NAME)
            if delay_s != 0:
                return delay_s
        raise AssertionError("does not settle")

    async def get(self) -> BackingImage:
        image = await self.images.find(NAME)
        assert image is not None
        return image

    async def copy_becomes(self, **status: Any) -> None:
        copy = await self.copies.find(COPY)
        assert copy is not None
        changed = dataclasses.replace(copy.status, **status)
        await self.copies.update_status(dataclasses.replace(copy, status=changed))
        await self.settle()

    async def condition(self, kind: str) -> Condition | None:
        conditions = (await self.get()).status.conditions
        return next((c for c in conditions if c.type == kind), None)


@pytest.fixture
async def host() -> Host:
    made = Host()
    await made.add_pool()
    return made


async def test_a_new_image_is_held_named_and_placed(host: Host) -> None:
    await host.create(checksum=CHECKSUM)
    assert await host.settle() is None
    image = await host.get()
    assert image.meta.finalizers == (IMAGE_FINALIZER,)
    assert len(image.status.uuid) == 8
    (copy,) = await host.copies.list()
    assert copy.meta == dataclasses.replace(copy.meta, name=COPY, finalizers=(DATA_FINALIZER,))
    assert copy.spec == ImageCopySpec(
        NAME, image.status.uuid, "node-a", POOL, "download", WEB, CHECKSUM
    )


@pytest.mark.parametrize("steps", range(1, 6))
async def test_a_new_process_goes_on_after_any_step(host: Host, steps: int) -> None:
    await host.create()
    for _ in range(steps):
        await host.reconciler.reconcile(NAME)
    uuid = (await host.get()).status.uuid
    host.restart()
    await host.settle()
    assert (await host.get()).status.uuid.startswith(uuid)
    assert len(await host.copies.list()) == 1


async def test_progress_and_readiness_are_told_as_the_copy_tells_them(host: Host) -> None:
    await host.create()
    await host.settle()
    ready = await host.condition("Ready")
    assert ready is None or not ready.is_true
    await host.copy_becomes(state=CopyState.IN_PROGRESS, progress_percent=40)
    ready = await host.condition("Ready")
    assert ready is not None
    assert (ready.is_true, ready.reason, "40 %" in ready.message) == (False, "InProgress", True)
    assert (await host.get()).status.disk_file_status[POOL].progress_percent == 40
    await host.copy_becomes(
        state=CopyState.READY, size_bytes=7, virtual_size_bytes=9, format="qcow2"
    )
    image = await host.get()
    assert image.is_ready
    assert (image.status.size_bytes, image.status.virtual_size_bytes) == (7, 9)
    verified = await host.condition("ChecksumVerified")
    assert verified is not None
    assert (verified.is_true, verified.reason) == (False, "Computing")
    since = (await host.condition("Ready") or verified).changed_at
    await host.copy_becomes(checksum=CHECKSUM)
    verified = await host.condition("ChecksumVerified")
    assert verified is not None
    assert (verified.is_true, verified.reason) == (True, "Computed")
    assert (await host.condition("Ready") or verified).changed_at == since


async def test_a_checksum_that_was_expected_and_came_is_verified(host: Host) -> None:
    await host.create(checksum=CHECKSUM)
    await host.settle()
    await host.copy_becomes(state=CopyState.READY, checksum=CHECKSUM)
    verified = await host.condition("ChecksumVerified")
    assert verified is not None
    assert (verified.is_true, verified.reason) == (True, "Verified")


async def test_an_expected_checksum_that_differs_is_told(host: Host) -> None:
    await host.create(checksum="d" * 128)
    await host.settle()
    await host.copy_becomes(state=CopyState.READY, checksum=CHECKSUM)
    verified = await host.condition("ChecksumVerified")
    assert verified is not None
    assert (verified.is_true, verified.reason) == (False, "ChecksumMismatch")


async def test_an_image_whose_copies_all_failed_has_failed(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.copy_becomes(state=CopyState.FAILED, reason="ImageRejected", message="no image")
    image = await host.get()
    assert not image.is_ready
    assert image.failure is not None
    assert (image.failure.reason, image.failure.message) == ("ImageRejected", "no image")
    writes = len(host.images.writes)
    host.restart()
    await host.settle()
    assert len(host.images.writes) == writes
    assert len(await host.copies.list()) == 1


async def test_a_failure_that_was_overcome_is_told_no_more(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.copy_becomes(state=CopyState.FAILED, reason="NoSpace", message="full")
    await host.copy_becomes(state=CopyState.READY, reason="", message="")
    assert (await host.get()).is_ready
    assert await host.condition("Failed") is None


@pytest.mark.parametrize("state", [None, VolumeState.FAILED])
async def test_an_export_of_no_volume_fails(host: Host, state: VolumeState | None) -> None:
    if state is not None:
        await host.add_volume(state)
    await host.create("export-from-volume", {"volume-name": "pvc-1", "export-type": "raw"})
    await host.settle()
    failed = await host.condition("Failed")
    assert failed is not None
    assert (failed.reason, "pvc-1" in failed.message) == ("VolumeNotFound", True)
    assert await host.copies.list() == []


async def test_an_export_goes_to_the_pool_of_its_volume(host: Host) -> None:
    await host.add_volume()
    await host.create("export-from-volume", {"volume-name": "pvc-1", "export-type": "raw"})
    await host.settle()
    (copy,) = await host.copies.list()
    assert copy.spec.source_parameters["volume-name"] == "pvc-1"


@pytest.mark.parametrize("source", ["restore"])
async def test_a_source_that_is_not_supported_fails_by_name(host: Host, source: str) -> None:
    await host.create(source, {})
    await host.settle()
    failed = await host.condition("Failed")
    assert failed is not None
    assert (failed.reason, source in failed.message) == ("UnsupportedSource", True)


async def test_an_image_without_a_pool_waits_and_says_for_what(host: Host) -> None:
    await host.create(disk_selector=("fast",))
    assert (await host.settle() or 0) > 0
    ready = await host.condition("Ready")
    assert ready is not None
    assert (ready.reason, "tags" in ready.message) == ("NoPool", True)
    assert (await host.get()).failure is None
    pool = await host.pools.find(POOL)
    assert pool is not None
    tagged = dataclasses.replace(pool.spec, tags=("fast",))
    await host.pools.update(dataclasses.replace(pool, spec=tagged))
    await host.settle()
    assert len(await host.copies.list()) == 1


async def test_a_ready_image_without_copies_is_damaged_and_never_made_anew(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.copy_becomes(state=CopyState.READY)
    await remove_by_force(host)
    await host.settle()
    failed = await host.condition("Failed")
    assert failed is not None
    assert failed.reason == "Corrupt"
    await host.settle()
    assert await host.copies.list() == []


async def test_an_image_goes_after_its_copies(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.images.delete(NAME)
    await host.settle()
    copy = await host.copies.find(COPY)
    assert copy is not None
    assert copy.meta.deleting
    assert (await host.get()).meta.deleting
    host.restart()
    await remove_by_force(host)
    await host.settle()
    assert await host.images.find(NAME) is None


async def test_a_copy_of_an_earlier_image_of_that_name_is_not_taken_for_its_own(
    host: Host,
) -> None:
    spec = ImageCopySpec(NAME, "another", "node-a", POOL, "download", {"url": "http://old.test/"})
    old = await host.copies.create(ImageCopy(Meta(COPY), spec))
    await host.copies.update_status(
        dataclasses.replace(old, status=dataclasses.replace(old.status, state=CopyState.READY))
    )
    await host.create()
    for _ in range(10):
        await host.reconciler.reconcile(NAME)
    image = await host.get()
    assert not image.is_ready
    (copy,) = await host.copies.list()
    assert copy.spec.image_uuid == image.status.uuid
    assert copy.spec.source_parameters == WEB


async def test_the_image_of_a_copy_is_known_also_after_the_copy_has_gone(host: Host) -> None:
    await host.create()
    await host.settle()
    assert host.reconciler.image_of_copy(COPY) == NAME
    await remove_by_force(host)
    assert host.reconciler.image_of_copy(COPY) == NAME
    assert host.reconciler.image_of_copy(COPY) is None


async def test_an_image_that_is_not_there_is_nothing_to_do(host: Host) -> None:
    assert await host.reconciler.reconcile("unknown") is None


async def remove_by_force(host: Host) -> None:
    copy = await host.copies.find(COPY)
    assert copy is not None
    await host.copies.update(
        dataclasses.replace(copy, meta=dataclasses.replace(copy.meta, finalizers=()))
    )
    await host.copies.delete(COPY)


@pytest.mark.parametrize(("waited_s", "delay_s"), [(0, 5), (200, 20), (86_400, 60)])
async def test_an_image_that_no_pool_can_take_is_looked_at_less_often_the_longer_it_waits(
    host: Host, waited_s: int, delay_s: int
) -> None:
    await host.create(node_selector=("no-pool-has-it",))
    created_at = (await host.get()).meta.created_at or datetime.now(UTC)
    host.reconciler = BackingImageReconciler(
        host.images,
        host.copies,
        host.pools,
        host.volumes,
        clock=lambda: created_at + timedelta(seconds=waited_s),
    )
    assert await host.settle() == delay_s


async def test_an_image_put_back_from_a_backup_without_its_status_keeps_its_copies(
    host: Host,
) -> None:
    await host.create()
    await host.settle()
    await host.copy_becomes(state=CopyState.READY, size_bytes=7, checksum=CHECKSUM)
    image, copies = await host.get(), await host.copies.list()
    host.images, host.copies = MemoryRegistry(BackingImage), MemoryRegistry(ImageCopy)
    host.restart()
    # As `kubectl create` does: the API server takes no status from it.
    await host.images.create(image)
    await host.reconciler.reconcile(NAME)
    for copy in copies:
        await host.copies.create(copy)
    await host.settle()
    kept = await host.copies.list()
    assert [(copy.spec, copy.meta.deleting) for copy in kept] == [(copies[0].spec, False)]
    assert (await host.get()).status.uuid == image.status.uuid


async def test_an_image_made_before_its_uuid_was_noted_gets_the_note_and_keeps_its_copies(
    host: Host,
) -> None:
    await host.create()
    await host.settle()
    before = await host.get()
    meta = dataclasses.replace(before.meta, annotations={})
    await host.images.update(dataclasses.replace(before, meta=meta))
    host.restart()
    await host.settle()
    image = await host.get()
    assert image.meta.annotations[IMAGE_UUID] == image.status.uuid == before.status.uuid
    assert len([copy for copy in await host.copies.list() if not copy.meta.deleting]) == 1


@pytest.mark.parametrize("noted", ["", "../../x", "0" * 9, "ABCDEF01"])
async def test_a_note_that_is_no_uuid_of_ours_is_replaced(host: Host, noted: str) -> None:
    spec = BackingImageSpec("download", WEB)
    await host.images.create(BackingImage(Meta(NAME, annotations={IMAGE_UUID: noted}), spec))
    await host.settle()
    image = await host.get()
    assert image.meta.annotations[IMAGE_UUID] == image.status.uuid != noted


async def test_a_verification_is_handed_on_by_who_may_only_list_copies(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.create()
    await host.settle()
    await host.copy_becomes(state=CopyState.READY, size_bytes=7, checksum=CHECKSUM)
    image = await host.get()
    asked = {**image.meta.annotations, VERIFY_AT: "2026-01-01T00:00:00Z"}
    meta = dataclasses.replace(image.meta, annotations=asked)
    await host.images.update(dataclasses.replace(image, meta=meta))

    async def forbidden(name: str) -> None:
        raise Unavailable("API server", "imagecopies is forbidden: cannot get resource")

    monkeypatch.setattr(host.copies, "find", forbidden)
    await host.settle()
    (copy,) = host.copies.cached()
    assert copy.meta.annotations[VERIFY_AT] == "2026-01-01T00:00:00Z"


async def test_a_copy_made_anew_since_it_was_judged_stays(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.create()
    await host.settle()
    (old,) = await host.copies.list()
    meta = dataclasses.replace(old.meta, finalizers=())
    await host.copies.update(dataclasses.replace(old, meta=meta))
    await host.copies.delete(old.meta.name)
    await host.copies.create(old)
    listed = asyncio.sleep(0, [dataclasses.replace(old, spec=STRAY)])
    monkeypatch.setattr(host.copies, "list", lambda **_: listed)
    await host.reconciler.reconcile(NAME)
    assert [copy.meta.deleting for copy in host.copies.cached()] == [False]
