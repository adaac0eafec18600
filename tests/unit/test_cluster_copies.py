"""Copies of images over several nodes: the real controllers and services, engines in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from grpc import StatusCode
from tests.fakes.cluster import Cluster, cluster
from tests.fakes.csi_calls import CallFailed
from tests.fakes.memory_engine import CHECKSUM

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.domain.errors import NoSpace
from shorthorn.domain.models import BackingImage, CopyState, DiskFileSpec, ImageCopy
from shorthorn.domain.names import copy_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HANDLE = "bi://backing?backingImageDataSourceType=download&backingImage=golden"
HOUR, RECOVERY = timedelta(minutes=61), timedelta(minutes=6)
FAILED = CopyState.FAILED


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with cluster("a", "b", "c") as made:
        yield made


async def room(made: Cluster, node: str, available_bytes: int) -> None:
    """Have a pool say how much room it has; the least known decides where images go."""
    pool = await made.pools.find(made.nodes[node].uuid)
    assert pool is not None
    status = dataclasses.replace(pool.status, available_bytes=available_bytes)
    await made.pools.update_status(dataclasses.replace(pool, status=status))


async def golden_on_a(made: Cluster, **spec: Any) -> None:
    """Make image golden, whose first copy is on node a."""
    await room(made, "a", 1 << 50)
    await made.create_image(**spec)
    await made.copy_is("a", lambda c: c is not None and c.status.state is CopyState.READY)
    await made.image_is(lambda i: i.is_ready)


def condition(image: BackingImage, kind: str) -> tuple[bool, str]:
    found = [c for c in image.status.conditions if c.type == kind]
    return (found[0].is_true, found[0].reason) if found else (False, "")


async def test_an_image_gets_as_many_copies_as_it_shall_have(three: Cluster) -> None:
    await golden_on_a(three, min_number_of_copies=2)
    image = await three.image_is(lambda i: len(i.status.disk_file_status) == 2)
    image = await three.image_is(lambda i: condition(i, "EnoughCopies") == (True, "Enough"))
    assert len(three.network.sent) == 1
    assert three.web.fetched == ["http://images.test/disk.qcow2"]
    for copy in three.copies.cached():
        assert copy.status.checksum == image.status.checksum == CHECKSUM
    assert {c.spec.expected_checksum for c in three.copies.cached()} == {"", CHECKSUM}
    await three.change_image(min_number_of_copies=3)
    await three.has_copies("a", "b", "c")


async def test_too_few_nodes_are_told_while_the_image_is_ready() -> None:
    async with cluster("a") as made:
        await golden_on_a(made, min_number_of_copies=3)
        image = await made.image_is(lambda i: i.is_ready)
        assert condition(image, "EnoughCopies") == (False, "NoPool")
        assert image.failure is None
        await made.add("b")
        await made.has_copies("a", "b")


async def test_copies_are_listed_by_label_alone(three: Cluster) -> None:
    await golden_on_a(three, min_number_of_copies=3)
    await three.has_copies("a", "b", "c")
    assert {} not in three.copies.lists
    assert three.volumes.lists == []


async def test_copies_from_before_labels_are_adopted(three: Cluster) -> None:
    await golden_on_a(three)
    await three.process.end()
    (copy,) = three.copies.cached()
    bare = dataclasses.replace(copy.meta, labels={"theirs": "kept"})
    await three.copies.update(dataclasses.replace(copy, meta=bare))
    await three.start_controller()
    await three.change_image(min_number_of_copies=2)
    await three.image_is(lambda i: condition(i, "EnoughCopies")[0])
    labels = {c.meta.labels.get("shorthorn.io/image") for c in three.copies.cached()}
    assert labels == {"golden"}
    (old,) = [c for c in three.copies.cached() if c.meta.uid == copy.meta.uid]
    assert old.meta.labels["theirs"] == "kept"
    assert len(three.web.fetched) == 1


async def test_a_copy_that_is_asked_for_is_made_and_goes_an_hour_later(three: Cluster) -> None:
    await golden_on_a(three)
    b = three.nodes["b"].uuid
    await three.change_image(disk_file_spec={b: DiskFileSpec()})
    image = await three.has_copies("a", "b")
    assert set(image.status.disk_last_ref_at) == {three.nodes["a"].uuid, b}
    await three.call.create_volume("pvc-1", handle=HANDLE, requisite=["node-a"])
    await three.image_is(lambda i: set(i.status.disk_last_ref_at) == {b})
    three.advance(HOUR)
    image = await three.has_copies("a")
    assert image.spec.disk_file_spec == {}
    assert not three.nodes["b"].engine.images
    three.advance(HOUR)
    await three.has_copies("a")


async def test_the_hour_counts_from_the_end_of_the_last_volume(three: Cluster) -> None:
    await golden_on_a(three)
    for node in ("a", "b"):
        await three.call.create_volume(f"pvc-{node}", handle=HANDLE, requisite=[f"node-{node}"])
    await three.image_is(lambda i: i.status.disk_last_ref_at == {})
    three.advance(10 * HOUR)
    await three.has_copies("a", "b")
    await three.call.delete_volume("pvc-b")
    await three.image_is(lambda i: set(i.status.disk_last_ref_at) == {three.nodes["b"].uuid})
    three.advance(HOUR / 2)
    await three.has_copies("a", "b")
    three.advance(HOUR / 2)
    await three.has_copies("a")


@pytest.mark.parametrize("by", ["pool", "entry"])
async def test_an_evicted_copy_goes_after_its_replacement(three: Cluster, by: str) -> None:
    await golden_on_a(three)
    a = three.nodes["a"].uuid
    three.network.gate.clear()
    if by == "entry":
        await three.change_image(disk_file_spec={a: DiskFileSpec(eviction_requested=True)})
    else:
        pool = await three.pools.find(a)
        assert pool is not None
        evicted = dataclasses.replace(pool.spec, eviction_requested=True)
        await three.pools.update(dataclasses.replace(pool, spec=evicted))
    await three.network.begun(1)
    assert three.nodes["a"].engine.images
    three.network.gate.set()
    image = await three.image_is(lambda i: a not in i.status.disk_file_status)
    assert image.is_ready
    await three.copy_is("a", lambda c: c is None)
    assert not three.nodes["a"].engine.images


async def test_the_sender_dies_and_another_one_goes_on(three: Cluster) -> None:
    await golden_on_a(three, min_number_of_copies=2)
    await three.image_is(lambda i: condition(i, "EnoughCopies")[0])
    (first,) = {c.spec.node_id for c in three.copies.cached()} - {"node-a"}
    last = ({"node-b", "node-c"} - {first}).pop().removeprefix("node-")
    three.network.gate.clear()
    await three.change_image(min_number_of_copies=3)
    await three.network.begun(2)
    three.network.away.add(three.network.sent[-1][0])
    three.network.gate.set()
    await three.has_copies("a", "b", "c")
    senders = [sender for sender, _, _ in three.network.sent[1:]]
    assert len(senders) == len(set(senders)) == 2
    assert three.nodes[last].engine.contents


async def test_the_only_sender_is_away_and_the_copy_says_for_whom_it_waits(three: Cluster) -> None:
    await golden_on_a(three)
    three.network.away.add(three.nodes["a"].uuid)
    await three.change_image(disk_file_spec={three.nodes["b"].uuid: DiskFileSpec()})
    copy = await three.copy_is("b", lambda c: c is not None and c.status.reason != "")
    assert copy is not None
    assert (copy.status.reason, "answers" in copy.status.message) == ("Unavailable", True)
    image = await three.image_is(lambda i: i.is_ready)
    three.network.away.clear()
    image = await three.has_copies("a", "b")
    assert image.is_ready


async def test_a_peer_that_lies_is_found_out_and_the_copy_made_anew(three: Cluster) -> None:
    await golden_on_a(three)
    three.network.lying.add(three.nodes["a"].uuid)
    await three.change_image(disk_file_spec={three.nodes["b"].uuid: DiskFileSpec()})
    failed = await three.copy_is("b", lambda c: c is not None and c.status.state is FAILED)
    assert failed is not None
    assert failed.status.reason == "ChecksumMismatch"
    engine = three.nodes["b"].engine
    assert (engine.images, engine.staged) == ({}, {})
    image = await three.image_is(lambda i: condition(i, "EnoughCopies") == (False, "CopyFailed"))
    assert image.is_ready
    three.network.lying.clear()
    three.advance(RECOVERY)
    await three.has_copies("a", "b")


async def test_a_silent_node_is_unknown_and_replaced_and_welcome_when_it_is_back(
    three: Cluster,
) -> None:
    await golden_on_a(three, min_number_of_copies=2)
    await three.image_is(lambda i: condition(i, "EnoughCopies")[0])
    await three.nodes["a"].says(is_there=False)
    a = three.nodes["a"].uuid
    states = [CopyState.READY, CopyState.READY, CopyState.UNKNOWN]
    image = await three.image_is(
        lambda i: sorted(f.state for f in i.status.disk_file_status.values()) == states
    )
    assert image.status.disk_file_status[a].state is CopyState.UNKNOWN
    assert image.is_ready
    await three.nodes["a"].says(is_there=True)
    await three.has_copies("a", "b", "c")
    three.advance(HOUR)
    await three.image_is(lambda i: len(i.status.disk_file_status) == 2)


async def test_an_image_on_silent_nodes_alone_is_not_ready_and_not_lost(three: Cluster) -> None:
    await golden_on_a(three)
    await three.nodes["a"].says(is_there=False)
    image = await three.image_is(lambda i: not i.is_ready)
    assert (image.failure, condition(image, "Ready")) == (None, (False, "NodeAway"))
    three.call.deadline_s = 0.3
    with pytest.raises(CallFailed, match="does not report") as caught:
        await three.call.create_volume("pvc-1", handle=HANDLE)
    assert caught.value.code is StatusCode.ABORTED
    await three.nodes["a"].says(is_there=True)
    assert (await three.image_is(lambda i: i.is_ready)).status.checksum == CHECKSUM


async def test_a_download_all_of_whose_files_are_gone_is_downloaded_again(three: Cluster) -> None:
    await golden_on_a(three)
    uuid = (await three.image_is(lambda i: i.is_ready)).status.uuid
    three.nodes["a"].engine.images.clear()
    await three.nodes["a"].restart()
    image = await three.image_is(lambda i: i.failure is not None)
    assert condition(image, "Failed") == (True, "Corrupt")
    assert len(three.web.fetched) == 1
    three.advance(RECOVERY)
    image = await three.image_is(lambda i: i.is_ready and i.failure is None)
    assert (image.status.uuid, len(three.web.fetched)) == (uuid, 2)
    # What it was is what it has to be.
    assert {c.spec.expected_checksum for c in three.copies.cached()} == {CHECKSUM}


async def test_an_image_deleted_in_the_middle_of_a_sync_leaves_nothing(three: Cluster) -> None:
    await golden_on_a(three)
    three.network.gate.clear()
    await three.change_image(disk_file_spec={three.nodes["b"].uuid: DiskFileSpec()})
    await three.network.begun(1)
    await three.images.delete("golden")
    assert await three.images.wait("golden", lambda i: i is None, timeout_s=10) is None
    assert three.copies.cached() == []
    for node in three.nodes.values():
        assert (node.engine.images, node.engine.staged) == ({}, {})


async def test_a_receiver_that_restarts_goes_on(three: Cluster) -> None:
    await golden_on_a(three)
    three.network.gate.clear()
    await three.change_image(disk_file_spec={three.nodes["b"].uuid: DiskFileSpec()})
    await three.network.begun(1)
    await three.nodes["b"].restart()
    await three.network.begun(2)
    three.network.gate.set()
    await three.has_copies("a", "b")
    assert len(three.copies.cached()) == 2


@pytest.mark.parametrize("writes", range(1, 12))
async def test_a_controller_that_dies_at_any_step_is_followed_by_one_that_goes_on(
    three: Cluster, writes: int
) -> None:
    await room(three, "a", 1 << 50)
    images, copies = three.images.writes, three.copies.writes
    await three.create_image(min_number_of_copies=2)
    async with asyncio.timeout(60):
        for _ in range(400):
            if len(images) + len(copies) > writes:
                break
            await asyncio.sleep(0)
    await three.restart_controller()
    await three.image_is(
        lambda i: any(c.type == "EnoughCopies" and c.is_true for c in i.status.conditions)
    )
    assert len(three.copies.cached()) == 2
    assert (len(three.web.fetched), len(three.network.sent)) == (1, 1)


async def test_a_node_that_has_no_room_is_not_filled(three: Cluster) -> None:
    await golden_on_a(three)
    for node in ("b", "c"):
        await room(three, node, 1)
    await three.change_image(min_number_of_copies=2)
    image = await three.image_is(lambda i: i.spec.min_number_of_copies == 2 and i.is_ready)
    image = await three.image_is(
        lambda i: any(c.type == "EnoughCopies" for c in i.status.conditions)
    )
    assert condition(image, "EnoughCopies") == (False, "NoPool")
    three.nodes["c"].engine.faults["commit_image"] = NoSpace("pool", 9, 1)
    await three.change_image(disk_file_spec={three.nodes["c"].uuid: DiskFileSpec()})
    failed = await three.copy_is("c", lambda c: c is not None and c.status.state is FAILED)
    assert failed is not None
    assert failed.status.reason == "NoSpace"
    assert three.nodes["c"].engine.staged == {}
    three.advance(RECOVERY)
    await three.has_copies("a", "c")


async def test_a_pool_that_only_breathes_wakes_no_image(three: Cluster) -> None:
    await golden_on_a(three)
    reconciler = BackingImageReconciler(three.images, three.copies, three.pools, three.volumes)
    a = three.nodes["a"].uuid
    assert reconciler.images_of_pool(a) == ["golden"]
    await room(three, "a", 1 << 49)
    assert reconciler.images_of_pool(a) == ()
    await three.nodes["a"].says(is_there=False)
    assert reconciler.images_of_pool(a) == ["golden"]
    await three.pools.delete(a)
    assert reconciler.images_of_pool(a) == ["golden"]
    assert reconciler.images_of_pool(a) == ()


async def test_a_volume_wakes_its_image_when_it_comes_and_when_it_goes(three: Cluster) -> None:
    await golden_on_a(three)
    await three.call.create_volume("pvc-1", handle=HANDLE)
    await three.call.create_volume("pvc-2")
    reconciler = BackingImageReconciler(three.images, three.copies, three.pools, three.volumes)
    assert reconciler.image_of_volume("pvc-2") is None
    assert [reconciler.image_of_volume("pvc-1") for _ in range(2)] == ["golden", None]
    await three.call.delete_volume("pvc-1")
    assert [reconciler.image_of_volume("pvc-1") for _ in range(2)] == ["golden", None]


async def test_a_copy_that_no_peer_has_waits_and_says_so() -> None:
    async with cluster("a") as made:
        await golden_on_a(made)
        (copy,) = made.copies.cached()
        other = dataclasses.replace(copy.spec, source_type="sync", image_uuid="x")
        meta = dataclasses.replace(copy.meta, name=copy_name("other", made.nodes["a"].uuid))
        await made.copies.create(ImageCopy(meta, dataclasses.replace(other, image="other")))
        found = await made.copies.wait(
            meta.name, lambda c: c is not None and c.status.reason != "", timeout_s=10
        )
        assert found is not None
        assert "no node with a ready copy" in found.status.message
