"""Image copies: capture, transfer, hash, remove; and a new process at every step."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes.memory_engine import CHECKSUM, MemoryEngine
from tests.fakes.registries import MemoryRegistry
from tests.fakes.world import MemoryChecksummer, MemoryWeb

from shorthorn.controllers import image_copies
from shorthorn.controllers.image_copies import ImageCopyReconciler
from shorthorn.domain.errors import Conflict, ImageFailed, NoSpace, Unavailable
from shorthorn.domain.labels import image_selector
from shorthorn.domain.models import (
    CopyState,
    ImageCopy,
    ImageCopySpec,
    ImageKey,
    Meta,
    Pool,
    PoolSpec,
    VolumeSource,
)
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.kit.keyed import KeyedLocks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "golden-11111111"
KEY = ImageKey("golden", "abcd")
EXPORT = {"volume-name": "pvc-1", "export-type": "qcow2"}
WEB = {"url": "http://images.test/disk.qcow2"}


class Host:
    """Registry and pool, which outlive the process; `reconciler` is the process."""

    def __init__(self) -> None:
        self.copies: MemoryRegistry[ImageCopy] = MemoryRegistry(ImageCopy)
        self.engine = MemoryEngine()
        self.web = MemoryWeb()
        self.checksummer = MemoryChecksummer()
        self.woken = asyncio.Event()
        self.reconciler = self._new()

    def _new(self) -> ImageCopyReconciler:
        return ImageCopyReconciler(
            self.copies,
            self.engine,
            self.web,
            self.checksummer,
            KeyedLocks(),
            lambda _: self.woken.set(),
        )

    async def restart(self) -> None:
        """Put a new process in the place of the old one."""
        await self.reconciler.close()
        self.reconciler = self._new()

    async def create(self, source_type: str, parameters: dict[str, str], **spec: Any) -> None:
        await self.copies.create(
            ImageCopy(
                Meta(NAME),
                ImageCopySpec(
                    image=KEY.name,
                    image_uuid=KEY.uuid,
                    node_id="node-a",
                    pool_uuid=self.engine.pool_uuid,
                    source_type=source_type,
                    source_parameters=parameters,
                    **spec,
                ),
            )
        )

    async def get(self) -> ImageCopy:
        copy = await self.copies.find(NAME)
        assert copy is not None
        return copy

    async def take_away(self) -> None:
        """Delete the object as somebody does who removes its finalizer."""
        copy = await self.get()
        await self.copies.update(
            dataclasses.replace(copy, meta=dataclasses.replace(copy.meta, finalizers=()))
        )
        await self.copies.delete(NAME)

    async def step(self) -> float | None:
        return await self.reconciler.reconcile(NAME)

    async def settle(self, *, looks: int = 50) -> None:
        """Reconcile, as the controller does, until nothing more is to be done."""
        for _ in range(looks):
            delay_s = await self.step()
            if delay_s == 0:
                continue
            if delay_s is not None:
                await asyncio.sleep(delay_s)
            elif self.woken.is_set():
                self.woken.clear()
            elif self.reconciler._transfers.is_known(NAME):
                async with asyncio.timeout(60):
                    await self.woken.wait()
            else:
                return
        raise AssertionError(f"does not settle: {await self.get()}")


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setattr(image_copies, "back_off_s", lambda failures: 0.01 * failures)
    made = Host()
    await made.engine.create_volume("pvc-1", 1 << 20, VolumeSource())
    yield made
    await made.reconciler.close()


async def test_an_export_is_captured_converted_and_hashed(host: Host) -> None:
    await host.create("export-from-volume", EXPORT)
    await host.settle()
    copy = await host.get()
    assert copy.status.state is CopyState.READY
    assert copy.status.checksum == CHECKSUM
    assert copy.status.progress_percent == 100
    assert copy.status.point_in_time is not None
    assert (copy.status.format, copy.status.virtual_size_bytes) == ("qcow2", 1 << 20)
    assert copy.meta.finalizers == (DATA_FINALIZER,)
    assert await host.step() is None
    made = [call for call in host.engine.calls if call[1] == KEY.name]
    assert made == [("begin_export", KEY.name), ("finish_export", KEY.name)]


async def test_a_download_is_fetched_and_committed(host: Host) -> None:
    await host.create("download", WEB, expected_checksum=CHECKSUM)
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.checksum) == (CopyState.READY, CHECKSUM)
    assert host.web.fetched == [WEB["url"]]


@pytest.mark.parametrize("steps", range(1, 9))
async def test_a_new_process_goes_on_after_any_step(host: Host, steps: int) -> None:
    await host.create("export-from-volume", EXPORT)
    for _ in range(steps):
        await host.step()
        await asyncio.sleep(0.001)
    before = (await host.get()).status.point_in_time
    await host.restart()
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.checksum) == (CopyState.READY, CHECKSUM)
    assert before in (None, copy.status.point_in_time)


async def test_a_capture_whose_report_was_lost_is_not_made_twice(host: Host) -> None:
    await host.create("export-from-volume", EXPORT)
    await host.step()
    host.copies.update_status = _failing(host.copies.update_status, Unavailable("API", "x"))  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await host.step()
    when = host.engine.fixed[KEY][0]
    await host.settle()
    assert (await host.get()).status.point_in_time == when


async def test_a_source_that_is_away_is_asked_again_ever_later(host: Host) -> None:
    class Away(MemoryWeb):
        async def fetch(self, *arguments: Any) -> Any:
            self.fetched.append("asked")
            if len(self.fetched) < 4:
                raise Unavailable("images.test", f"no answer ({len(self.fetched)})")
            return await super().fetch(*arguments)

    host.web = Away()
    await host.restart()
    await host.create("download", WEB)
    while len(host.web.fetched) < 2:
        await host.step()
        await asyncio.sleep(0.002)
    copy = await host.get()
    assert copy.status.state is CopyState.IN_PROGRESS
    assert (copy.status.reason, "no answer" in copy.status.message) == ("Unavailable", True)
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.reason) == (CopyState.READY, "")


async def test_events_do_not_shorten_the_wait_after_a_failure(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_copies, "back_off_s", lambda _: 60.0)
    host.engine.faults["finish_export"] = Unavailable("qemu", "away")
    await host.create("export-from-volume", EXPORT)
    delay_s: float | None = 0
    while not delay_s:
        delay_s = await host.step()
        await asyncio.sleep(0)
    for _ in range(5):
        assert 50 < (await host.step() or 0) <= 60
    assert host.engine.calls.count(("finish_export", KEY.name)) == 1


@pytest.mark.parametrize(
    ("method", "error", "reason"),
    [
        pytest.param("begin_export", NoSpace("pool", 9, 1), "NoSpace", id="capture"),
        pytest.param(
            "finish_export", ImageFailed("golden", "too large"), "BackingImageFailed", id="refused"
        ),
    ],
)
async def test_what_cannot_be_made_fails_once_and_leaves_nothing(
    host: Host, method: str, error: Exception, reason: str
) -> None:
    host.engine.faults[method] = error
    await host.create("export-from-volume", EXPORT)
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.reason) == (CopyState.FAILED, reason)
    assert copy.status.message == str(error)
    assert host.engine.fixed == {}
    await host.restart()
    await host.settle()
    assert host.engine.calls.count((method, KEY.name)) == 1


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_what_was_captured_in_a_pool_that_is_full_then_waits_for_room(
    host: Host, is_restarted: bool
) -> None:
    host.engine.faults["finish_export"] = NoSpace("pool", 9, 1)
    await host.create("export-from-volume", EXPORT)
    while (await host.get()).status.state is not CopyState.FAILED:
        await host.step()
        await asyncio.sleep(0.001)
    copy = await host.get()
    assert (copy.status.reason, copy.status.message) == ("NoSpace", str(NoSpace("pool", 9, 1)))
    when = host.engine.fixed[KEY][0]
    if is_restarted:
        await host.restart()
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.reason) == (CopyState.READY, "")
    assert copy.status.point_in_time == when


async def test_a_capture_that_may_pass_is_told_and_tried_again(host: Host) -> None:
    host.engine.faults["begin_export"] = Unavailable("pool", "busy")
    await host.create("export-from-volume", EXPORT)
    await host.step()
    with pytest.raises(Unavailable):
        await host.step()
    assert (await host.get()).status.message == "pool: busy"
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.message) == (CopyState.READY, "")


@pytest.mark.parametrize(
    ("source", "parameters", "problem"),
    [
        pytest.param("export-from-volume", {**EXPORT, "export-type": "vmdk"}, "vmdk", id="format"),
        pytest.param("export-from-volume", {"volume-name": "gone"}, "gone", id="volume"),
        pytest.param("upload", {}, "not supported", id="source type"),
        pytest.param("download", {"url": "http://x.test/missing"}, "404", id="url"),
    ],
)
async def test_nonsense_fails_with_its_name(
    host: Host, source: str, parameters: dict[str, str], problem: str
) -> None:
    await host.create(source, parameters)
    await host.settle()
    copy = await host.get()
    assert copy.status.state is CopyState.FAILED
    assert problem in copy.status.message


async def test_a_verdict_that_cannot_be_written_down_is_not_forgotten(host: Host) -> None:
    """Or a large download with a wrong checksum would be fetched again."""
    await host.create("download", WEB, expected_checksum="0" * 128)
    while host.reconciler._transfers.find_ended(NAME) is None:
        await host.step()
        await asyncio.sleep(0)
    real = host.copies.update_status
    for error in (Conflict("ImageCopy", NAME), Unavailable("API server", "away")):
        host.copies.update_status = _failing(real, error)  # type: ignore[method-assign]
        with pytest.raises(type(error)):
            await host.step()
    host.copies.update_status = real  # type: ignore[method-assign]
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.reason) == (CopyState.FAILED, "ChecksumMismatch")
    assert host.web.fetched == [WEB["url"]]


async def test_an_image_stays_ready_while_its_checksum_cannot_be_computed(host: Host) -> None:
    class Broken(MemoryChecksummer):
        tries = 0

        async def sha512(self, *arguments: Any, **options: Any) -> str:
            self.tries += 1
            if self.tries < 3:
                raise Unavailable("disk", "read error")
            return await super().sha512(*arguments, **options)

    host.checksummer = Broken()
    await host.restart()
    await host.create("export-from-volume", EXPORT)
    states = set()
    while (copy := await host.get()).status.checksum == "":
        states.add(copy.status.state)
        await host.step()
        await asyncio.sleep(0.002)
    assert CopyState.FAILED not in states
    assert copy.status.state is CopyState.READY
    assert host.checksummer.tries == 3


@pytest.mark.parametrize("source", ["download", "export-from-volume"])
async def test_deletion_in_mid_transfer_stops_it_and_removes_what_was_made(
    host: Host, source: str
) -> None:
    gate = asyncio.Event()
    host.web.gate.clear()
    host.engine.gates["finish_export"] = gate
    await host.create(source, WEB if source == "download" else EXPORT)
    while not host.reconciler._transfers.is_known(NAME):
        await host.step()
    await asyncio.sleep(0)
    await host.copies.delete(NAME)
    await host.step()
    assert await host.copies.find(NAME) is None
    assert (host.engine.images, host.engine.fixed) == ({}, {})
    assert ("delete_image", KEY.name) in host.engine.calls
    assert not host.reconciler._transfers.is_known(NAME)


async def test_a_deletion_that_fails_keeps_the_object(host: Host) -> None:
    await host.create("export-from-volume", EXPORT)
    await host.settle()
    await host.copies.delete(NAME)
    host.engine.faults["delete_image"] = Unavailable("disk", "away")
    with pytest.raises(Unavailable):
        await host.step()
    assert (await host.get()).meta.finalizers == (DATA_FINALIZER,)
    await host.restart()
    await host.step()
    assert await host.copies.find(NAME) is None
    assert host.engine.images == {}


async def test_an_object_taken_away_by_force_stops_its_transfer(host: Host) -> None:
    host.web.gate.clear()
    await host.create("download", WEB)
    while not host.reconciler._transfers.is_known(NAME):
        await host.step()
    await host.take_away()
    await host.step()
    assert not host.reconciler._transfers.is_known(NAME)


async def test_files_that_are_gone_are_reported_and_never_made_anew(host: Host) -> None:
    await host.create("download", WEB)
    await host.settle()
    host.engine.images.clear()
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.reason) == (CopyState.FAILED, "Corrupt")
    assert host.web.fetched == [WEB["url"]]


async def test_bytes_of_another_time_are_no_copy(host: Host) -> None:
    """A pool that was away still has what an image of that UUID once was."""
    await host.create("export-from-volume", EXPORT)
    await host.settle()
    old = (await host.engine.find_image(KEY), (await host.get()).status.checksum)
    await host.take_away()
    await host.restart()
    await host.create("sync", {}, expected_checksum="d" * 128)
    await host.settle()
    copy = await host.get()
    assert (copy.status.state, copy.status.reason) == (CopyState.FAILED, "Corrupt")
    assert f"other bytes under its name, of SHA-512 {old[1]}" in copy.status.message
    assert await host.engine.find_image(KEY) == old[0]  # until the copy is deleted
    await host.copies.delete(NAME)
    await host.settle()
    assert await host.engine.find_image(KEY) is None


async def test_progress_shows_in_the_status(host: Host) -> None:
    host.web.gate.clear()
    await host.create("download", WEB)
    while (await host.get()).status.bytes_done == 0:
        await host.step()
        await asyncio.sleep(0)
    status = (await host.get()).status
    assert (status.state, status.progress_percent) == (CopyState.IN_PROGRESS, 25)
    writes = len(host.copies.writes)
    await host.step()
    assert len(host.copies.writes) == writes


async def test_a_copy_on_another_pool_is_left_alone(host: Host) -> None:
    await host.create("download", WEB)
    copy = await host.get()
    other = dataclasses.replace(copy.spec, pool_uuid="another")
    await host.copies.update(dataclasses.replace(copy, spec=other))
    assert await host.step() is None
    assert (await host.get()).meta.finalizers == ()


async def test_one_host_gets_nothing_from_peers(host: Host) -> None:
    await host.create("sync", {})
    await host.settle()
    copy = await host.get()
    assert copy.status.state is CopyState.FAILED
    assert "nothing from peers" in copy.status.message


async def test_a_peers_word_is_not_taken_for_the_checksum(host: Host) -> None:
    class Wrong:
        async def fetch_image(self, key: ImageKey, *arguments: Any) -> Any:
            record = await host.web.fetch(key, WEB, "", *arguments[2:])
            return dataclasses.replace(record, checksum="0" * 128)

    pools: MemoryRegistry[Pool] = MemoryRegistry(Pool)
    await pools.create(Pool(Meta("p"), PoolSpec("node-b", "p", "/", peer_address="b:1")))
    spec = ImageCopySpec(KEY.name, KEY.uuid, "node-b", "p", "download")
    labels = image_selector(KEY.name)
    other = await host.copies.create(ImageCopy(Meta("other", labels=labels), spec))
    ready = dataclasses.replace(other.status, state=CopyState.READY)
    await host.copies.update_status(dataclasses.replace(other, status=ready))
    await host.reconciler.close()
    host.reconciler = ImageCopyReconciler(
        host.copies,
        host.engine,
        host.web,
        host.checksummer,
        KeyedLocks(),
        lambda _: host.woken.set(),
        pools=pools,
        peers=Wrong(),  # type: ignore[arg-type]
    )
    await host.create("sync", {}, expected_checksum=CHECKSUM)
    await host.settle()
    assert (await host.get()).status.reason == "ChecksumMismatch"
    assert host.engine.images == {}


def _failing(method: Any, error: Exception) -> Any:
    """Return a method that raises `error` the first time."""
    is_spent = False

    async def call(*arguments: Any) -> Any:
        nonlocal is_spent
        if not is_spent:
            is_spent = True
            raise error
        return await method(*arguments)

    return call
