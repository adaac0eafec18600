"""Views: objects become rows, trees, manifests and readings, without a server."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from shorthorn.domain import handles
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    BackingImageStatus,
    Condition,
    CopyState,
    DiskFileStatus,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Snapshot,
    SnapshotSpec,
    SnapshotStatus,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
)
from shorthorn.web.rates import Rates, Speed
from shorthorn.web.rendering import format_bytes, format_seconds
from shorthorn.web.views.handle import Reading, read_handle
from shorthorn.web.views.images import PAGE_ROWS, Query, State, list_images, row_of, shown_url
from shorthorn.web.views.manifests import Names, handle_of, objects_for, quantity, to_yaml
from shorthorn.web.views.users import Cluster, users_of
from shorthorn.web.views.volumes import Names as VolumeNames
from shorthorn.web.views.volumes import list_volumes, read_names
from shorthorn.web.watched import mark_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
READY = (Condition("Ready", True, "Ready"), Condition("ChecksumVerified", True, "Verified"))
FAILED = (Condition("Ready", False, "X", "no"), Condition("Failed", True, "X", "no"))


def image(
    name: str, *, source: str = "download", created: int = 0, version: int = 1, **status: Any
) -> BackingImage:
    parameters = {"url": f"https://user:secret@example.org/{name}.qcow2?key=secret"}
    return BackingImage(
        Meta(name, created_at=NOW + timedelta(seconds=created), resource_version=str(version)),
        BackingImageSpec(source, parameters if source == "download" else {}),
        BackingImageStatus(**status),
    )


def moving(percent: int) -> dict[str, DiskFileStatus]:
    return {"pool": DiskFileStatus(CopyState.IN_PROGRESS, percent)}


def going(message: str) -> tuple[Condition, ...]:
    return (Condition("Ready", False, "InProgress", message),)


def names_of(images: list[BackingImage], **query: str) -> list[str]:
    return [row.name for row in list_images(images, {}, Query.read(query)).rows]


def test_a_row_tells_state_and_progress() -> None:
    assert row_of(image("a", conditions=READY), ()).state is State.READY
    assert row_of(image("a", conditions=READY), ()).is_verified
    computed = (READY[0], Condition("ChecksumVerified", True, "Computed"))
    assert not row_of(image("a", conditions=computed), ()).is_verified
    failed = row_of(image("a", conditions=FAILED), ())
    assert (failed.state, failed.message) == (State.FAILED, "no")
    row = row_of(image("a", disk_file_status=moving(40)), ())
    assert (row.state, row.progress_percent) == (State.WORKING, 40)
    assert row_of(image("a"), ()).state is State.WAITING


def test_a_row_sums_its_copies() -> None:
    spec = ImageCopySpec("a", "u", "n", "p", "download")
    status = ImageCopyStatus(real_size_bytes=10, shared_bytes=4)
    copies = [ImageCopy(Meta("c1"), spec, status), ImageCopy(Meta("c2"), spec, status)]
    row = row_of(image("a", conditions=READY), copies)
    assert (row.allocated_bytes, row.shared_bytes) == (20, 8)
    unknown = row_of(image("a"), [])
    assert (unknown.allocated_bytes, unknown.shared_bytes) == (None, None)


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert row_of(image("a"), ()).source_detail == "https://example.org/a.qcow2"
    assert shown_url("https://u:p@h:8443/x?token=1#f") == "https://h:8443/x"
    assert shown_url("http://[::1") == ""


def test_the_list_is_filtered() -> None:
    images = [image("debian"), image("ubuntu", conditions=READY), image("up", source="upload")]
    assert names_of(images, q="DEB") == ["debian"]
    assert names_of(images, q="example.org") == ["debian", "ubuntu"]
    assert names_of(images, state="ready") == ["ubuntu"]
    assert names_of(images, source="upload") == ["up"]
    assert names_of(images, state="nonsense", source="nonsense", sort="nonsense") == [
        "debian",
        "ubuntu",
        "up",
    ]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", "abc"),
        ("-name", "cba"),
        ("size", "bca"),
        ("-size", "acb"),
        ("age", "cba"),
        ("state", "cab"),
    ],
)
def test_the_list_is_sorted(sort: str, expected: str) -> None:
    images = [
        image("a", size_bytes=9, created=1, conditions=(), disk_file_status=moving(1)),
        image("b", size_bytes=1, created=2, conditions=READY),
        image("c", size_bytes=5, created=3, conditions=FAILED),
    ]
    assert "".join(names_of(images, sort=sort)) == expected


def test_a_page_has_a_hundred_rows_and_the_last_one_the_rest() -> None:
    images = [image(f"i{number:03}") for number in range(PAGE_ROWS + 5)]
    first = list_images(images, {}, Query.read({}))
    assert (len(first.rows), first.pages, first.total) == (PAGE_ROWS, 2, PAGE_ROWS + 5)
    assert len(list_images(images, {}, Query.read({"page": "2"})).rows) == 5
    beyond = list_images(images, {}, Query.read({"page": "99"}))
    assert (beyond.query.page, len(beyond.rows)) == (2, 5)


@pytest.mark.parametrize("page", ["0", "-1", "x", "²", "9" * 30])
def test_a_page_that_is_no_number_is_the_first(page: str) -> None:
    assert Query.read({"page": page}).page == 1


def test_a_mark_changes_with_every_change() -> None:
    images = [image("a", version=3), image("b", version=7)]
    mark = mark_of(images)
    assert mark_of(images) == mark
    assert mark_of([image("a", version=8), images[1]]) != mark
    assert mark_of(images[:1]) != mark
    odd = [dataclasses.replace(images[0], meta=Meta("a", resource_version="x"))]
    assert mark_of(odd) != mark_of(images[:1])


# ---- users --------------------------------------------------------------------------------------


def handle(name: str) -> str:
    return f"bi://backing?backingImageDataSourceType=download&backingImage={name}"


def content(name: str, of: str, policy: str = "Retain") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "deletionPolicy": policy,
            "source": {"snapshotHandle": handle(of)},
            "volumeSnapshotRef": {"namespace": "default", "name": f"{name}-snap"},
        },
        "status": {"readyToUse": True},
    }


def claim(name: str, snapshot: str, phase: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"dataSource": {"kind": "VolumeSnapshot", "name": snapshot}},
        "status": {"phase": phase},
    }


def test_users_are_found_by_source_and_by_handle() -> None:
    volume = Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1, VolumeSource(image="golden")))
    pv = {
        "metadata": {"name": "pv-1"},
        "spec": {
            "csi": {"volumeHandle": "pvc-1"},
            "claimRef": {"namespace": "default", "name": "data"},
        },
        "status": {"phase": "Bound"},
    }
    cluster = Cluster(
        claims=[claim("waiting", "c1-snap", "Pending"), claim("other", "x", "Bound")],
        persistent_volumes=[pv],
        volume_snapshots=[{"metadata": {"name": "c1-snap", "namespace": "default"}, "spec": {}}],
        contents=[content("c1", "golden", "Delete"), content("c2", "silver")],
    )
    clone = image("copy", source="clone")
    spec = dataclasses.replace(clone.spec, source_parameters={"backing-image": "golden"})
    users = users_of(image("golden"), [volume], [dataclasses.replace(clone, spec=spec)], cluster)
    assert [(node.kind, node.name) for node in users.nodes] == [
        ("Volume", "pvc-1"),
        ("VolumeSnapshotContent", "c1"),
        ("Backing image", "copy"),
    ]
    assert users.nodes[0].below[0].name == "default/data"
    snapshot = users.nodes[1].below[0]
    assert (snapshot.kind, snapshot.below[0].name) == ("VolumeSnapshot", "default/waiting")
    assert users.pending_claims == ["default/waiting"]
    assert users.deleting_contents == ["c1"]


# ---- manifests ----------------------------------------------------------------------------------


def test_manifests_name_each_other_and_the_image() -> None:
    text = to_yaml(
        *objects_for(handle("golden"), Names("golden"), driver="driver.x", size_bytes=5 << 30)
    )
    made, snapshot, pvc = yaml.safe_load_all(text)
    assert made["spec"]["source"]["snapshotHandle"] == handle("golden")
    assert made["spec"]["deletionPolicy"] == "Retain"
    assert made["spec"]["volumeSnapshotRef"]["name"] == snapshot["metadata"]["name"]
    assert snapshot["spec"]["source"]["volumeSnapshotContentName"] == made["metadata"]["name"]
    assert pvc["spec"]["dataSource"]["name"] == snapshot["metadata"]["name"]
    assert pvc["spec"]["resources"]["requests"]["storage"] == "5Gi"


def test_an_images_handle_is_read_back_as_that_image() -> None:
    written = handle_of(image("golden"))
    assert written is not None
    parsed = handles.parse(written)
    assert isinstance(parsed, handles.BackingImageHandle)
    assert (parsed.backing_image, parsed.source_type) == ("golden", "download")


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1Mi"), (1 << 30, "1Gi"), ((1 << 30) + 1, "1025Mi"), (64 << 20, "64Mi")]
)
def test_a_quantity_holds_the_bytes(size: int, text: str) -> None:
    assert quantity(size) == text


# ---- the handle checker -------------------------------------------------------------------------


def reading(text: str, *images: BackingImage) -> Reading:
    known = {i.meta.name: i for i in images}
    kept = [
        Snapshot(Meta(name), SnapshotSpec(name, "pvc-1", "n", "p"), SnapshotStatus(state))
        for name, state in (
            ("s1", VolumeState.READY),
            ("s2", VolumeState.PENDING),
            ("s3", VolumeState.FAILED),
        )
    ]
    snapshots = {s.meta.name: s for s in kept}
    volume = Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1))
    return read_handle(text, known.get, snapshots.get, {"pvc-1": volume}.get)


def test_a_handle_of_an_image_that_exists_is_fine() -> None:
    found = reading(handle("golden"), image("golden", conditions=READY))
    assert (found.verdict, found.link) == ("ok", "/images/golden")


def test_a_handle_that_contradicts_its_image_is_wrong() -> None:
    found = reading(handle("golden"), image("golden", source="upload"))
    assert found.verdict == "wrong"
    assert "different" in found.summary


def test_what_exists_and_cannot_be_used_is_not_fine() -> None:
    assert reading(handle("golden"), image("golden", conditions=FAILED)).verdict == "unusable"
    assert reading(handle("golden"), image("golden", disk_file_status=moving(3))).verdict == (
        "not-yet"
    )


def test_an_export_needs_a_volume_that_exists() -> None:
    def export(volume: str) -> str:
        kind = "backingImageDataSourceType=export-from-volume"
        return f"bi://backing?{kind}&backingImage=new&volume-name={volume}&export-type=raw"

    assert reading(export("pvc-1")).verdict == "on-demand"
    missing = reading(export("pvc-x"))
    assert (missing.verdict, "no volume pvc-x" in missing.summary) == ("wrong", True)
    nobody_says = read_handle(export("pvc-x"), lambda _: None, lambda _: None, None)
    assert (nobody_says.verdict, "your rights" in nobody_says.summary) == ("on-demand", True)


def test_a_complete_handle_of_no_image_is_made_on_demand() -> None:
    found = reading(f"{handle('new')}&url=https%3A%2F%2Fexample.org%2Fa.qcow2")
    assert found.verdict == "on-demand"
    assert reading(handle("new")).verdict == "wrong"


def test_traps_are_warned_of() -> None:
    found = reading(f"{handle('golden')}&checksum=1", image("golden"))
    assert any("checksum" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("snap://pvc-1/s1", "ok"),
        ("snap://pvc-1/s2", "not-yet"),
        ("snap://pvc-1/s3", "unusable"),
        ("snap://pvc-2/s1", "wrong"),
        ("snap://x", "wrong"),
        ("?", "wrong"),
    ],
)
def test_other_handles_are_judged(text: str, verdict: str) -> None:
    assert reading(text).verdict == verdict


# ---- volumes, figures, rates --------------------------------------------------------------------


def test_volumes_tell_their_origin() -> None:
    volume = Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1, VolumeSource(image="golden")))
    kept = Snapshot(Meta("s1"), SnapshotSpec("s1", "pvc-1", "n", "p"))
    listing = list_volumes([volume], [kept], "", 1, VolumeNames())
    assert (listing.volumes[0].origin, listing.volumes[0].origin_link) == (
        "image golden",
        "/images/golden",
    )
    assert listing.snapshots[0].handle == "snap://pvc-1/s1"
    assert list_volumes([volume], [kept], "nothing", 1, VolumeNames()).matching == 0
    assert list_volumes([volume], [kept], "golden", 1, VolumeNames()).matching == 1


def test_volumes_and_snapshots_have_the_names_that_people_gave_them() -> None:
    def content(name: str, **source: str) -> dict[str, Any]:
        ref = {"namespace": "apps", "name": name}
        status = {"snapshotHandle": "snap://pvc-1/s1"}
        return {"spec": {"source": source, "volumeSnapshotRef": ref}, "status": status}

    pv = {
        "spec": {
            "csi": {"volumeHandle": "pvc-1"},
            "claimRef": {"namespace": "apps", "name": "data"},
        }
    }
    others: list[dict[str, Any]] = [
        {"spec": {"hostPath": {}}},
        {"spec": {"csi": {"volumeHandle": "pvc-9"}}},
    ]
    taken = content("kept", volumeHandle="pvc-1")
    restored = content("restored", snapshotHandle="snap://pvc-1/s1")
    foreign = {"spec": {"source": {"snapshotHandle": "x"}, "volumeSnapshotRef": {"name": "y"}}}
    names = read_names([pv, *others], [taken, restored, foreign])
    assert (names.claims, names.snapshots) == ({"pvc-1": "apps/data"}, {"s1": "apps/kept"})

    volume = Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1))
    kept = Snapshot(Meta("s1"), SnapshotSpec("s1", "pvc-1", "n", "p"))
    listing = list_volumes([volume], [kept], "apps/data", 1, names)
    assert [row.claim for row in listing.volumes] == ["apps/data"]
    assert [(row.named, row.claim) for row in listing.snapshots] == [("apps/kept", "apps/data")]
    by_name = list_volumes([volume], [kept], "apps/kept", 1, names)
    assert (by_name.matching, by_name.snapshots_matching) == (0, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"),
     ((1 << 20) - 1, "1 MiB"), (150 << 20, "150 MiB")],
)  # fmt: skip
def test_bytes_are_written_for_people(value: int | None, text: str) -> None:
    assert format_bytes(value) == text


def test_remaining_time_is_written_roughly() -> None:
    assert [format_seconds(s) for s in (None, 0.2, 59, 150, 7200 * 2, 86400 * 3)] == [
        "–",
        "1 s",
        "59 s",
        "2 min",
        "4 h",
        "3 days",
    ]


def test_a_rate_is_seen_from_two_samples() -> None:
    now = [0.0]
    rates = Rates(None, clock=lambda: now[0])  # type: ignore[arg-type]
    spec = ImageCopySpec("a", "u", "n", "p", "download")

    def at(seconds: float, done: int, state: CopyState = CopyState.IN_PROGRESS) -> ImageCopy:
        now[0] = seconds
        status = ImageCopyStatus(state=state, bytes_done=done, bytes_total=1000)
        copy = ImageCopy(Meta("c"), spec, status)
        rates.observe("c", copy)
        return copy

    assert rates.speed_of(at(0, 0)).rate is None
    speed = rates.speed_of(at(2, 200))
    assert (speed.rate, speed.remaining_s) == (100.0, 8.0)
    assert rates.speed_of(at(3, 10)).rate is None  # it began anew
    assert rates.speed_of(at(4, 1000, CopyState.READY)).rate is None


def test_a_copy_that_has_not_moved_for_seconds_has_no_speed() -> None:
    now = [0.0]
    rates = Rates(None, clock=lambda: now[0], stale_s=5)  # type: ignore[arg-type]

    def seen(done: int, message: str) -> ImageCopy:
        spec = ImageCopySpec("a", "u", "n", "p", "download")
        status = ImageCopyStatus(
            state=CopyState.IN_PROGRESS, bytes_done=done, bytes_total=1000, message=message
        )
        copy = ImageCopy(Meta("c"), spec, status)
        rates.observe("c", copy)
        return copy

    seen(100, "")
    now[0] = 1.0
    seen(200, "")
    now[0] = 5.5
    copy = seen(200, "downloading, 1.5 MiB/s")  # told anew, but nothing has arrived
    assert rates.speed_of(copy).rate == 100.0
    pending = image("a", disk_file_status=moving(20), conditions=going("downloading, 1.5 MiB/s"))
    assert row_of(pending, [copy], rates).message == "downloading, 1.5 MiB/s"
    now[0] = 6.0
    assert rates.speed_of(copy) == Speed(is_stalled=True)
    assert row_of(pending, [copy], rates).message == "nothing has arrived for some seconds"
    waiting = image("a", disk_file_status=moving(20), conditions=going("waiting for bytes"))
    assert row_of(waiting, [copy], rates).message == "waiting for bytes"


def test_what_is_tried_again_is_not_in_progress() -> None:
    refused = (Condition("Ready", False, "Unavailable", "refused; trying again"),)
    row = row_of(image("a", disk_file_status=moving(0), conditions=refused), ())
    assert (row.state, row.message) == (State.RETRYING, "refused; trying again")
    assert row.progress_percent is None
    assert names_of([image("a", disk_file_status=moving(0), conditions=refused)], state="retrying")
    going_on = image("a", disk_file_status=moving(3), conditions=going("downloading"))
    assert row_of(going_on, ()).state is State.WORKING
