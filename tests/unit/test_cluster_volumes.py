"""Volumes whose source is on another node: the real services and controllers, engines in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from grpc import StatusCode
from tests.fakes.cluster import Cluster, cluster
from tests.fakes.csi_calls import GIB, CallFailed

from shorthorn.controllers.finalizers import release
from shorthorn.controllers.ownerless import find_ownerless
from shorthorn.domain.errors import ChecksumMismatch, NoSpace, Unavailable
from shorthorn.domain.models import (
    DiskFileSpec,
    ImageFormat,
    ImageKey,
    ImageRecord,
    VolumeSource,
    VolumeState,
)
from shorthorn.domain.names import clone_source_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    Make = Callable[[], Coroutine[Any, Any, Any]]

DOWNLOAD = (
    "bi://backing?backingImageDataSourceType=download&backingImage=golden"
    "&url=https%3A%2F%2Fexample.org%2Fa.qcow2"
)


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    async with cluster("a", "b", "c") as made:
        yield made


async def code_of(calling: Awaitable[Any]) -> StatusCode:
    with pytest.raises(CallFailed) as caught:
        await calling
    return caught.value.code


async def source_on_a(made: Cluster, content: str = "before") -> None:
    """Make volume pvc-0 on node a and write to it."""
    await made.call.create_volume("pvc-0", requisite=["node-a"])
    made.nodes["a"].write("pvc-0", content)


async def snapshot_on_a(made: Cluster) -> str:
    """Return the handle of a snapshot, on node a, of what was `before`."""
    await source_on_a(made)
    handle = (await made.call.create_snapshot("snapshot-1", "pvc-0", type="snap")).snapshot_id
    made.nodes["a"].write("pvc-0", "after")
    return handle


async def set_room(made: Cluster, node: str, available_bytes: int) -> None:
    pool = await made.pools.find(made.nodes[node].uuid)
    assert pool is not None
    status = dataclasses.replace(pool.status, available_bytes=available_bytes)
    await made.pools.update_status(dataclasses.replace(pool, status=status))


# --- images


async def test_an_export_is_restored_on_another_node(three: Cluster) -> None:
    await source_on_a(three)
    snapshot = await three.call.create_snapshot("snapshot-1", "pvc-0", type="bi")
    volume = await three.call.create_volume(
        "pvc-1", handle=snapshot.snapshot_id, requisite=["node-b"]
    )
    assert volume.accessible_topology[0].segments["topology.shorthorn.io/node"] == "node-b"
    assert three.nodes["b"].content_of("pvc-1") == "before"
    image = await three.has_copies("a", "b", name="snapshot-1")
    assert set(image.spec.disk_file_spec) == {three.nodes["b"].uuid}
    answers = await three.call.list_snapshots(snapshot.snapshot_id)
    assert [answer.creation_time for answer in answers] == [snapshot.creation_time]


async def test_twenty_volumes_on_three_nodes_fetch_the_image_once_for_each(three: Cluster) -> None:
    nodes = ["node-a", "node-b", "node-c"]
    await asyncio.gather(
        *(
            three.call.create_volume(f"pvc-{n}", handle=DOWNLOAD, requisite=[nodes[n % 3]])
            for n in range(20)
        )
    )
    assert len(three.web.fetched) == 1
    assert len(three.network.sent) == 2
    assert {node: len(three.nodes[node].engine.volumes) for node in "abc"} == {
        "a": 7,
        "b": 7,
        "c": 6,
    }
    contents = {three.nodes["abc"[n % 3]].content_of(f"pvc-{n}") for n in range(20)}
    assert contents == {"image golden"}


async def test_volumes_that_may_be_anywhere_go_where_the_image_is(three: Cluster) -> None:
    await asyncio.gather(
        *(three.call.create_volume(f"pvc-{n}", handle=DOWNLOAD) for n in range(20))
    )
    assert three.network.sent == []
    assert sorted(len(node.engine.volumes) for node in three.nodes.values()) == [0, 0, 20]


async def test_the_first_preferred_node_gets_the_volume_even_if_it_must_fetch(
    three: Cluster,
) -> None:
    await three.call.create_volume("pvc-0", handle=DOWNLOAD, requisite=["node-a"])
    everywhere = ["node-a", "node-b", "node-c"]
    chosen = ["node-c", "node-a", "node-b"]
    await three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=everywhere, preferred=chosen)
    assert three.nodes["c"].content_of("pvc-1") == "image golden"


async def test_a_retry_meets_the_pool_that_was_chosen_before(three: Cluster) -> None:
    await three.call.create_volume("pvc-0", handle=DOWNLOAD, requisite=["node-a"])
    three.network.gate.clear()
    three.call.deadline_s = 0.3
    either = ["node-b", "node-c"]
    await set_room(three, "b", 1 << 50)
    wanted = three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=either)
    with pytest.raises(CallFailed, match=r"its copy on pool bbbb.*in-progress \d+ %") as caught:
        await wanted
    assert caught.value.code is StatusCode.ABORTED
    assert await three.volumes.find("pvc-1") is None
    await set_room(three, "c", 1 << 60)
    await three.restart_controller()
    three.network.gate.set()
    three.call.deadline_s = 20
    await three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=either)
    assert "pvc-1" in three.nodes["b"].engine.volumes
    assert len(three.network.sent) == 1


async def test_a_node_without_room_for_the_image_is_passed_over(three: Cluster) -> None:
    await three.call.create_volume("pvc-0", handle=DOWNLOAD, requisite=["node-a"])
    await set_room(three, "b", 1)
    either = ["node-b", "node-c"]
    await three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=either, preferred=either)
    assert "pvc-1" in three.nodes["c"].engine.volumes
    refused = three.call.create_volume("pvc-2", handle=DOWNLOAD, requisite=["node-b"])
    assert await code_of(refused) is StatusCode.RESOURCE_EXHAUSTED
    assert three.leftovers() == []


async def test_a_pool_that_an_image_shall_leave_gets_no_volume_of_it(three: Cluster) -> None:
    await three.call.create_volume("pvc-0", handle=DOWNLOAD, requisite=["node-a"])
    b = three.nodes["b"].uuid
    await three.change_image(disk_file_spec={b: DiskFileSpec(eviction_requested=True)})
    refused = three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=["node-b"])
    assert await code_of(refused) is StatusCode.RESOURCE_EXHAUSTED


async def test_an_image_deleted_while_its_copy_is_awaited_is_told(three: Cluster) -> None:
    await three.call.create_volume("pvc-0", handle=DOWNLOAD, requisite=["node-a"])
    three.network.gate.clear()
    making = asyncio.create_task(
        three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=["node-b"])
    )
    await three.network.begun(1)
    await three.images.delete("golden")
    assert await code_of(making) is StatusCode.ABORTED
    await three.images.wait("golden", lambda i: i is None, timeout_s=10)
    assert three.copies.cached() == []
    assert not any(node.engine.staged for node in three.nodes.values())


async def test_a_copy_removed_in_the_moment_of_its_use_is_made_anew(three: Cluster) -> None:
    await three.call.create_volume("pvc-0", handle=DOWNLOAD, requisite=["node-a"])
    engine = three.nodes["a"].engine
    kept = dict(engine.images)
    engine.images.clear()
    retried = three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=["node-a"])
    assert await code_of(retried) is StatusCode.ABORTED
    assert await three.volumes.find("pvc-1") is None
    engine.images.update(kept)
    await three.call.create_volume("pvc-1", handle=DOWNLOAD, requisite=["node-a"])


async def test_selectors_and_copies_of_a_request_are_kept(three: Cluster) -> None:
    await three.add("d", tags=("fast",), node_tags=("ssd",))
    await three.add("e", tags=("fast",), node_tags=("ssd",))
    parameters = {
        "backingImage": "tagged",
        "backingImageDataSourceType": "download",
        "backingImageDataSourceParameters": '{"url": "https://example.org/a.qcow2"}',
        "backingImageMinNumberOfCopies": "2",
        "backingImageDiskSelector": "fast",
        "backingImageNodeSelector": "ssd",
    }
    await three.call.create_volume("pvc-1", parameters=parameters)
    await three.has_copies("d", "e", name="tagged")


async def test_the_selectors_of_a_snapshot_class_move_the_export(three: Cluster) -> None:
    await three.add("d", tags=("fast",))
    await source_on_a(three)
    request = three.call.create_snapshot("snapshot-1", "pvc-0", type="bi", diskSelector="fast")
    assert (await request).ready_to_use
    await three.has_copies("a", "d", name="snapshot-1")
    three.advance(timedelta(minutes=61))
    await three.has_copies("d", name="snapshot-1")


# --- snapshots and clones


@pytest.fixture(params=["snapshot", "clone"])
async def make(request: pytest.FixtureRequest, three: Cluster) -> Make:
    """Return what makes volume pvc-1 on node b of what is on node a."""
    if request.param == "snapshot":
        handle = await snapshot_on_a(three)
        return lambda: three.call.create_volume("pvc-1", handle=handle, requisite=["node-b"])
    await source_on_a(three)
    return lambda: three.call.create_volume("pvc-1", volume_id="pvc-0", requisite=["node-b"])


async def test_a_source_on_another_node_is_brought(three: Cluster, make: Make) -> None:
    volume = await make()
    assert volume.accessible_topology[0].segments["topology.shorthorn.io/node"] == "node-b"
    assert three.nodes["b"].content_of("pvc-1") == "before"
    assert len(three.network.sent) == 1
    assert await make() == volume
    await three.is_clean()


async def test_a_source_is_cloned_where_it_is_if_that_will_do(three: Cluster) -> None:
    handle = await snapshot_on_a(three)
    await set_room(three, "b", 1 << 50)
    await three.call.create_volume("pvc-1", handle=handle)
    await three.call.create_volume("pvc-2", volume_id="pvc-0")
    assert set(three.nodes["a"].engine.volumes) == {"pvc-0", "pvc-1", "pvc-2"}
    assert three.network.sent == []
    await three.is_clean()


async def test_progress_shows_in_the_answer_and_a_new_controller_goes_on(
    three: Cluster, make: Make
) -> None:
    three.network.gate.clear()
    three.call.deadline_s = 0.4
    with pytest.raises(CallFailed, match="brought from another node") as caught:
        await make()
    assert caught.value.code is StatusCode.ABORTED
    await three.restart_controller()
    assert await code_of(make()) is StatusCode.ABORTED
    three.call.deadline_s = 20
    three.network.gate.set()
    await make()
    assert len(three.network.sent) == 1
    assert three.nodes["b"].content_of("pvc-1") == "before"
    await three.is_clean()


async def test_no_snapshot_that_is_needed_for_a_while_is_shown(three: Cluster) -> None:
    await source_on_a(three)
    three.network.gate.clear()
    three.call.deadline_s = 0.4
    clone = three.call.create_volume("pvc-1", volume_id="pvc-0", requisite=["node-b"])
    assert await code_of(clone) is StatusCode.ABORTED
    hidden = await three.snapshots.find(clone_source_name("pvc-1"))
    assert hidden is not None
    assert await three.call.list_snapshots("") == []
    assert await three.call.list_snapshots(f"snap://pvc-0/{hidden.meta.name}") == []
    await three.call.delete_snapshot(f"snap://pvc-0/{hidden.meta.name}")
    found = await three.snapshots.find(hidden.meta.name)
    assert found is not None
    assert not found.meta.deleting


@pytest.mark.parametrize("moment", ["staged", "committed", "made", "content removed", "reported"])
async def test_a_node_that_dies_in_the_middle_goes_on(
    three: Cluster, make: Make, moment: str
) -> None:
    engine = three.nodes["b"].engine
    fault = Unavailable("process", "killed")
    if moment == "staged":
        three.network.gate.clear()
    elif moment == "committed":
        engine.gates["create_volume"] = asyncio.Event()
    elif moment in ("made", "content removed"):
        engine.gates["delete_image"] = asyncio.Event()
    making = asyncio.create_task(make())
    if moment == "staged":
        await three.network.begun(1)
    elif moment == "committed":
        await engine.entered("create_volume", "pvc-1")
    elif moment in ("made", "content removed"):
        await engine.entered("delete_image", "content-pvc-1")
    else:
        await three.volumes.wait(
            "pvc-1", lambda v: v is not None and v.status.state is VolumeState.READY, timeout_s=10
        )
    await three.nodes["b"].process.end()
    if moment == "content removed":
        engine.images.clear()
        engine.faults["delete_image"] = fault
    engine.gates.clear()
    three.network.gate.set()
    owners = (three.volumes, three.snapshots, three.copies)
    assert await find_ownerless(engine, *owners) == []
    await three.nodes["b"].start()
    await making
    assert three.nodes["b"].content_of("pvc-1") == "before"
    assert len(three.network.sent) == (2 if moment == "staged" else 1)
    await three.is_clean()


async def test_a_sender_that_is_away_is_waited_for(three: Cluster, make: Make) -> None:
    a = three.nodes["a"].uuid
    three.network.away.add(a)
    making = asyncio.create_task(make())
    volume = await three.volumes.wait(
        "pvc-1", lambda v: v is not None and v.status.reason == "Unavailable", timeout_s=10
    )
    assert volume is not None
    assert (volume.status.state, "answers" in volume.status.message) == (VolumeState.PENDING, True)
    three.network.away.clear()
    await making
    await three.is_clean()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(NoSpace("pool", 9, 1), StatusCode.RESOURCE_EXHAUSTED, id="no space"),
        pytest.param(ChecksumMismatch("x", "a", "b"), StatusCode.DATA_LOSS, id="checksum"),
    ],
)
async def test_a_transfer_that_fails_for_good_leaves_nothing(
    three: Cluster,
    make: Make,
    error: Exception,
    code: StatusCode,
) -> None:
    three.network.faults.append(error)
    assert await code_of(make()) is code
    assert await three.volumes.find("pvc-1") is None
    await three.is_clean()
    await make()
    await three.is_clean()


async def test_a_pool_that_is_full_after_the_transfer_leaves_nothing(
    three: Cluster, make: Make
) -> None:
    three.nodes["b"].engine.faults["create_volume"] = NoSpace("pool", 9, 1)
    assert await code_of(make()) is StatusCode.RESOURCE_EXHAUSTED
    await three.is_clean()


async def test_a_volume_deleted_while_its_source_is_brought_leaves_nothing(
    three: Cluster, make: Make
) -> None:
    three.network.gate.clear()
    making = asyncio.create_task(make())
    await three.network.begun(1)
    await three.call.delete_volume("pvc-1")
    assert await code_of(making) is StatusCode.ABORTED
    assert await three.volumes.find("pvc-1") is None
    await three.is_clean()


async def test_a_volume_taken_away_by_force_leaves_nothing(three: Cluster, make: Make) -> None:
    three.network.gate.clear()
    making = asyncio.create_task(make())
    await three.network.begun(1)
    volume = await three.volumes.find("pvc-1")
    assert volume is not None
    bare = dataclasses.replace(volume.meta, finalizers=())
    await three.volumes.update(dataclasses.replace(volume, meta=bare))
    await three.volumes.delete("pvc-1")
    assert await code_of(making) is StatusCode.ABORTED
    three.advance(timedelta(minutes=11))
    await three.is_clean()


async def test_what_a_dead_process_brought_for_a_volume_that_is_gone_is_removed(
    three: Cluster,
) -> None:
    engine = three.nodes["b"].engine
    await three.nodes["b"].process.end()
    await source_on_a(three)
    when = three.now()

    def record(name: str, uid: str, **source: str) -> ImageRecord:
        key = ImageKey(name, uid)
        return ImageRecord(key, ImageFormat.RAW, 1, 1, "", source, when, None, "", "")

    stray = record("content-pvc-9", "uid", type="content-of-volume", volume="pvc-9")
    other = record("content-pvc-0", "old", type="content-of-volume", volume="pvc-0")
    theirs = record("content-of-a-user", "u", type="download", url="http://x.test/")
    for found in (stray, other, theirs):
        engine.images[found.key] = found
    await three.nodes["b"].start()
    await three.call.create_volume("pvc-1", requisite=["node-b"])
    assert list(engine.images) == [theirs.key]


async def test_a_source_is_kept_while_it_is_brought(three: Cluster) -> None:
    handle = await snapshot_on_a(three)
    three.network.gate.clear()
    making = [
        asyncio.create_task(three.call.create_volume("pvc-1", handle=handle, requisite=["node-b"])),
        asyncio.create_task(
            three.call.create_volume("pvc-2", volume_id="pvc-0", requisite=["node-c"])
        ),
    ]
    await three.network.begun(2)
    assert await code_of(three.call.delete_snapshot(handle)) is StatusCode.ABORTED
    assert await code_of(three.call.delete_volume("pvc-0")) is StatusCode.ABORTED
    three.network.gate.set()
    await asyncio.gather(*making)
    await three.call.delete_snapshot(handle)
    await three.call.delete_volume("pvc-0")
    assert three.nodes["c"].content_of("pvc-2") == "after"
    await three.is_clean()


async def test_a_clone_whose_caller_gave_up_is_forgotten(three: Cluster) -> None:
    """The controller dies between the snapshot and the volume, and nobody asks again."""
    await source_on_a(three)
    three.nodes["a"].engine.gates["create_snapshot"] = asyncio.Event()
    clone = three.call.create_volume("pvc-1", volume_id="pvc-0", requisite=["node-b"])
    making = asyncio.create_task(clone)
    name = clone_source_name("pvc-1")
    await three.nodes["a"].engine.entered("create_snapshot", name)
    await three.process.end()
    making.cancel()
    await asyncio.wait([making])
    three.nodes["a"].engine.gates["create_snapshot"].set()
    await three.start_controller()
    three.advance(timedelta(minutes=5))
    await three.snapshots.wait(
        name, lambda s: s is not None and s.status.state is VolumeState.READY, timeout_s=10
    )
    three.advance(timedelta(minutes=6))
    await three.is_clean()
    assert await three.volumes.find("pvc-1") is None


async def test_a_clone_source_goes_also_when_nobody_asks_again(three: Cluster) -> None:
    """The controller dies between the volume and its answer, and nobody asks again."""
    await source_on_a(three)
    three.network.gate.clear()
    three.call.deadline_s = 0.4
    clone = three.call.create_volume("pvc-1", volume_id="pvc-0", requisite=["node-b"])
    assert await code_of(clone) is StatusCode.ABORTED
    three.network.gate.set()
    await three.volumes.wait(
        "pvc-1", lambda v: v is not None and v.status.state is VolumeState.READY, timeout_s=10
    )
    await three.restart_controller()
    await three.is_clean()


async def test_ten_equal_clones_bring_the_source_once(three: Cluster) -> None:
    await source_on_a(three)
    answers = await asyncio.gather(
        *(
            three.call.create_volume("pvc-1", volume_id="pvc-0", requisite=["node-b"])
            for _ in range(10)
        )
    )
    assert all(answer == answers[0] for answer in answers)
    assert len(three.network.sent) == 1
    await three.is_clean()


async def test_a_source_that_is_nowhere_is_not_found(three: Cluster) -> None:
    handle = await snapshot_on_a(three)
    engine = three.nodes["a"].engine
    engine.snapshots.clear()
    missing = three.call.create_volume("pvc-1", handle=handle, requisite=["node-b"])
    assert await code_of(missing) is StatusCode.NOT_FOUND
    assert await three.volumes.find("pvc-1") is None
    await three.nodes["a"].says(is_there=False)
    away = three.call.create_volume("pvc-2", volume_id="pvc-0", requisite=["node-b"])
    assert await code_of(away) is StatusCode.RESOURCE_EXHAUSTED
    too_small = three.call.create_volume("pvc-3", volume_id="pvc-0", size=GIB // 2)
    assert await code_of(too_small) is StatusCode.OUT_OF_RANGE


async def test_nodes_that_give_nothing_to_peers_keep_their_volumes() -> None:
    async with cluster("a", "b") as made:
        for node in made.nodes.values():
            pool = await made.pools.find(node.uuid)
            assert pool is not None
            alone = dataclasses.replace(pool.spec, peer_address="")
            await made.pools.update(dataclasses.replace(pool, spec=alone))
        handle = await snapshot_on_a(made)
        await made.call.create_volume("pvc-1", handle=handle)
        refused = made.call.create_volume("pvc-2", handle=handle, requisite=["node-b"])
        assert await code_of(refused) is StatusCode.RESOURCE_EXHAUSTED


async def test_a_volume_begun_on_a_node_that_is_gone_for_good_is_made_elsewhere(
    three: Cluster,
) -> None:
    a, call = three.nodes["a"], three.call
    await a.process.end()
    call.deadline_s = 0.3
    with pytest.raises(CallFailed) as begun:
        await call.create_volume("pvc-1", requisite=["node-a"])
    assert begun.value.code is StatusCode.ABORTED
    await a.says(is_there=False)
    with pytest.raises(CallFailed) as silent:  # it may come back
        await call.create_volume("pvc-1", requisite=["node-a"])
    assert silent.value.code is StatusCode.ABORTED
    assert not three.volumes.cached()[0].meta.deleting
    await three.pools.delete(a.uuid)
    with pytest.raises(CallFailed, match="gone") as gone:
        await call.create_volume("pvc-1", requisite=["node-b"])
    assert gone.value.code is StatusCode.ABORTED
    (left,) = three.volumes.cached()
    assert left.meta.deleting
    await release(three.volumes, left)  # as controllers.lost_nodes does after a minute
    call.deadline_s = None
    made = await call.create_volume("pvc-1", requisite=["node-b"])
    assert made.accessible_topology[0].segments["topology.shorthorn.io/node"] == "node-b"


async def test_a_clone_is_not_made_of_what_a_returned_node_holds_under_the_sources_name(
    three: Cluster,
) -> None:
    await source_on_a(three)
    # Begun here before, and given up with the node: no object names it.
    b = three.nodes["b"]
    stale = await b.engine.create_volume("pvc-0", GIB, VolumeSource())
    b.engine.contents[stale.path] = "stale"
    await three.call.create_volume("pvc-1", volume_id="pvc-0", requisite=["node-b"])
    assert b.content_of("pvc-1") == "before"
