"""Images that are verified or made anew because somebody asked: once for each value.

The controller hands a value on to the copies that are ready; a node hashes what is on its disk and
says what it found; the controller gathers that.
"""

from __future__ import annotations

import dataclasses
import errno
from datetime import UTC, datetime

import pytest
from tests.fakes.memory_engine import CHECKSUM
from tests.unit import test_backing_image_reconciler as controller
from tests.unit import test_image_copy_reconciler as node

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.image_bytes import RETRIED, RETRY_AT, VERIFY_AT
from shorthorn.domain.image_status import gather
from shorthorn.domain.models import CopyState, ImageCopy, ImageCopySpec, Meta, Pool, PoolSpec

host = node.host
"""One node, as its own tests have it."""

T1, T2 = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00+00:00"
OTHER = "22222222-0000-4000-8000-000000000000"
EXPORT = {"volume-name": "pvc-1", "export-type": "raw"}


@pytest.fixture
async def cluster() -> controller.Host:
    made = controller.Host()
    await made.add_pool()
    return made


async def annotate_copy(host: node.Host, value: str) -> None:
    copy = await host.get()
    meta = dataclasses.replace(copy.meta, annotations={VERIFY_AT: value})
    await host.copies.update(dataclasses.replace(copy, meta=meta))


async def annotate(cluster: controller.Host, **annotations: str) -> None:
    keys = {"verify_at": VERIFY_AT, "retry_at": RETRY_AT}
    image = await cluster.get()
    added = {keys[name]: value for name, value in annotations.items()}
    meta = dataclasses.replace(image.meta, annotations={**image.meta.annotations, **added})
    await cluster.images.update(dataclasses.replace(image, meta=meta))
    await cluster.settle()


# --- on the node


async def test_a_copy_is_hashed_again_once_for_each_value(host: node.Host) -> None:
    await host.create("download", node.WEB)
    await host.settle()
    assert (await host.get()).status.verify_at == ""
    await annotate_copy(host, T1)
    await host.settle()
    first = (await host.get()).status
    assert (first.state, first.verify_at) == (CopyState.READY, T1)
    assert first.verified_at is not None
    await host.restart()
    await host.settle()
    assert (await host.get()).status == first
    await annotate_copy(host, T2)
    await host.settle()
    second = (await host.get()).status
    assert second.verify_at == T2
    assert second.verified_at is not None
    assert second.verified_at > first.verified_at


DAMAGES = ["other-bytes", "base-differs", OSError(errno.EIO, "base.raw"), errno.EIO, errno.ENOENT]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_bytes_condemn_the_copy_for_good(
    host: node.Host, damage: str | int | OSError
) -> None:
    await host.create("download", node.WEB)
    await host.settle()
    if isinstance(damage, int):
        host.checksummer.failure = OSError(damage, "the disk says no")
    elif damage == "other-bytes":
        host.checksummer.found = "d" * 128
    else:
        host.checksummer.base = damage
    await annotate_copy(host, T1)
    await host.settle()
    failed = (await host.get()).status
    assert (failed.state, failed.reason, failed.verify_at) == (CopyState.FAILED, "Corrupt", T1)
    shown = {"other-bytes": "d" * 128, "base-differs": "base.raw, which volumes are made of"}
    assert shown.get(str(damage), "cannot be read") in failed.message
    host.checksummer.failure, host.checksummer.found = None, CHECKSUM
    host.checksummer.base = ""
    assert await host.engine.find_image(node.KEY) is not None
    await host.restart()
    await host.settle()
    assert (await host.get()).status == failed


@pytest.mark.parametrize("is_base", [False, True])
async def test_a_copy_that_cannot_be_read_now_stays_ready_and_is_tried_again(
    host: node.Host, is_base: bool
) -> None:
    await host.create("download", node.WEB)
    await host.settle()
    if is_base:
        host.checksummer.base = Unavailable("the comparison", "QEMU was killed")
    else:
        host.checksummer.failure = OSError(errno.EMFILE, "too many files")
    await annotate_copy(host, T1)
    for _ in range(20):
        if await host.step() is not None:
            break
        await host.woken.wait()
    assert (await host.get()).status.state is CopyState.READY
    assert (await host.get()).status.verify_at == ""
    host.checksummer.failure, host.checksummer.base = None, ""
    await host.settle()
    assert (await host.get()).status.verify_at == T1


async def test_a_process_that_dies_while_it_verifies_begins_again(host: node.Host) -> None:
    await host.create("download", node.WEB)
    await host.settle()
    host.checksummer.gate.clear()
    await annotate_copy(host, T1)
    for _ in range(3):
        await host.step()
    await host.restart()
    assert (await host.get()).status.verify_at == ""
    host.checksummer.gate.set()
    await host.settle()
    assert (await host.get()).status.verify_at == T1


# --- in the controller


async def test_a_request_goes_to_ready_copies_and_its_time_is_told(
    cluster: controller.Host,
) -> None:
    await cluster.create()
    await cluster.settle()
    await annotate(cluster, verify_at=T1)
    copy = await cluster.copies.find(controller.COPY)
    assert copy is not None
    assert VERIFY_AT not in copy.meta.annotations
    await cluster.copy_becomes(state=CopyState.READY, size_bytes=1, checksum=controller.CHECKSUM)
    copy = await cluster.copies.find(controller.COPY)
    assert copy is not None
    assert copy.meta.annotations[VERIFY_AT] == T1
    writes = len(cluster.copies.writes)
    await cluster.settle()
    assert len(cluster.copies.writes) == writes
    before = await cluster.condition("ChecksumVerified")
    when = datetime(2030, 1, 1, tzinfo=UTC)
    await cluster.copy_becomes(verify_at=T1, verified_at=when)
    after = await cluster.condition("ChecksumVerified")
    assert before is not None
    assert after is not None
    assert (before.is_true, after.is_true) == (True, True)
    assert (before.reason, after.reason) == ("Computed", "Verified")
    assert before.changed_at != after.changed_at == when


async def test_the_last_damaged_copy_fails_the_image_and_says_so_of_its_checksum(
    cluster: controller.Host,
) -> None:
    await cluster.create("export-from-volume", EXPORT)
    await cluster.add_volume()
    await cluster.settle()
    await cluster.copy_becomes(state=CopyState.READY, size_bytes=1, checksum=controller.CHECKSUM)
    await annotate(cluster, verify_at=T1)
    await cluster.copy_becomes(
        state=CopyState.FAILED, reason="Corrupt", message="it is damaged", verify_at=T1
    )
    assert not (await cluster.get()).is_ready
    verified = await cluster.condition("ChecksumVerified")
    assert verified is not None
    assert (verified.is_true, verified.reason, verified.message) == (
        False,
        "Corrupt",
        "it is damaged",
    )


async def test_a_good_copy_elsewhere_keeps_the_image_ready(cluster: controller.Host) -> None:
    await cluster.create()
    await cluster.settle()
    await cluster.copy_becomes(state=CopyState.READY, size_bytes=1, checksum=controller.CHECKSUM)
    image = await cluster.get()
    pools = [await cluster.pools.find(controller.POOL)]
    pools.append(Pool(Meta(OTHER), PoolSpec("node-b", OTHER, "/pool")))
    (good,) = await cluster.copies.list()
    spec = ImageCopySpec(good.spec.image, good.spec.image_uuid, "node-b", OTHER, "sync")
    bad = ImageCopy(
        Meta("bad"),
        spec,
        dataclasses.replace(
            good.status, state=CopyState.FAILED, reason="Corrupt", message="bad", verify_at=T1
        ),
    )
    status = gather(image, [bad, good], {controller.POOL, OTHER}, datetime.now(UTC))
    told = {c.type: (c.is_true, c.reason) for c in status.conditions}
    assert told == {"Ready": (True, "Ready"), "ChecksumVerified": (False, "Corrupt")}


# --- made anew


async def test_a_failed_image_is_made_anew_once_for_each_value(cluster: controller.Host) -> None:
    await cluster.create()
    await cluster.settle()
    await cluster.copy_becomes(state=CopyState.FAILED, reason="ImageRejected", message="no image")
    await annotate(cluster, retry_at=T1)
    old = await cluster.copies.find(controller.COPY)
    assert old is not None
    assert old.meta.deleting
    assert RETRIED not in (await cluster.get()).meta.annotations
    await controller.remove_by_force(cluster)
    await cluster.settle()
    await cluster.settle()
    new = await cluster.copies.find(controller.COPY)
    assert new is not None
    assert new.meta.annotations[RETRY_AT] == T1
    assert (await cluster.get()).meta.annotations[RETRIED] == T1
    await cluster.copy_becomes(state=CopyState.FAILED, reason="ImageRejected", message="again")
    await cluster.settle()
    again = await cluster.copies.find(controller.COPY)
    assert again is not None
    assert not again.meta.deleting
    await annotate(cluster, retry_at=T2)
    again = await cluster.copies.find(controller.COPY)
    assert again is not None
    assert again.meta.deleting


@pytest.mark.parametrize("steps", range(4))
async def test_a_retry_goes_on_in_a_new_process(cluster: controller.Host, steps: int) -> None:
    await cluster.create()
    await cluster.settle()
    await cluster.copy_becomes(state=CopyState.FAILED, reason="NoSpace", message="full")
    await annotate(cluster, retry_at=T1)
    await controller.remove_by_force(cluster)
    for _ in range(steps):
        await cluster.reconciler.reconcile(controller.NAME)
    cluster.restart()
    await cluster.settle()
    await cluster.settle()
    new = await cluster.copies.find(controller.COPY)
    assert new is not None
    assert not new.meta.deleting
    assert (await cluster.get()).meta.annotations[RETRIED] == T1


async def test_an_export_made_anew_has_the_point_in_time_of_its_new_capture(
    cluster: controller.Host,
) -> None:
    first, second = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    await cluster.add_volume()
    await cluster.create("export-from-volume", EXPORT)
    await cluster.settle()
    await cluster.copy_becomes(state=CopyState.STARTING, point_in_time=first)
    assert (await cluster.get()).status.point_in_time == first
    await cluster.copy_becomes(state=CopyState.FAILED, reason="NoSpace", message="full")
    await annotate(cluster, retry_at=T1)
    await controller.remove_by_force(cluster)
    await cluster.settle()
    await cluster.settle()
    assert (await cluster.get()).status.point_in_time is None
    await cluster.copy_becomes(state=CopyState.STARTING, point_in_time=second)
    assert (await cluster.get()).status.point_in_time == second
