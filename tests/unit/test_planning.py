"""Planning: what each reconciler does next, and that it ends.

Aspects: one step at a time towards the wanted state; nothing to do in a satisfied state; lost data
is never made anew; deletion from every state ends with the object gone.
"""

import dataclasses
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.domain import planning
from shorthorn.domain.models import (
    CopyState,
    FormatState,
    ImageCopy,
    ImageCopySpec,
    ImageFormat,
    ImageKey,
    ImageRecord,
    Meta,
    Snapshot,
    SnapshotRecord,
    SnapshotSpec,
    Volume,
    VolumeRecord,
    VolumeSource,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)
from shorthorn.domain.planning import DATA_FINALIZER, Step

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HELD = Meta("v", finalizers=(DATA_FINALIZER,))
VOLUME = Volume(HELD, VolumeSpec("v", "n", "p", 100))
RECORD = VolumeRecord("v", 100, VolumeSource(), FormatState.BLANK, "", NOW, "/x")
SNAPSHOT = Snapshot(HELD, SnapshotSpec("s", "v", "n", "p"))
SNAPSHOT_RECORD = SnapshotRecord("s", "v", 100, NOW, "/x")


def _with(obj, **status):
    return dataclasses.replace(obj, status=dataclasses.replace(obj.status, **status))


def _deleting(obj):
    return dataclasses.replace(obj, meta=dataclasses.replace(obj.meta, deleting=True))


def _free(obj):
    return dataclasses.replace(obj, meta=dataclasses.replace(obj.meta, finalizers=()))


READY = _with(VOLUME, state=VolumeState.READY, capacity_bytes=100)


@pytest.mark.parametrize(
    ("volume", "record", "step"),
    [
        pytest.param(None, RECORD, Step.NOTHING, id="data without object is left alone"),
        pytest.param(_free(VOLUME), None, Step.HOLD, id="held before data is made"),
        pytest.param(VOLUME, None, Step.CREATE, id="created"),
        pytest.param(VOLUME, RECORD, Step.REPORT, id="made and not yet said"),
        pytest.param(READY, RECORD, Step.NOTHING, id="satisfied"),
        pytest.param(
            dataclasses.replace(READY, spec=dataclasses.replace(READY.spec, capacity_bytes=200)),
            RECORD,
            Step.EXPAND,
            id="grown",
        ),
        pytest.param(READY, None, Step.REPORT_LOST, id="lost data is not made anew"),
        pytest.param(_with(VOLUME, state=VolumeState.FAILED), None, Step.NOTHING, id="failed"),
        pytest.param(_deleting(READY), RECORD, Step.DELETE, id="data goes first"),
        pytest.param(_deleting(READY), None, Step.RELEASE, id="then the object"),
        pytest.param(_deleting(_free(READY)), RECORD, Step.NOTHING, id="released"),
    ],
)
def test_a_volume_takes_the_next_step(volume, record, step):
    assert planning.plan_volume(volume, record) is step


@pytest.mark.parametrize(
    ("snapshot", "record", "step"),
    [
        pytest.param(_free(SNAPSHOT), None, Step.HOLD, id="held"),
        pytest.param(SNAPSHOT, None, Step.CREATE, id="created"),
        pytest.param(SNAPSHOT, SNAPSHOT_RECORD, Step.REPORT, id="said"),
        pytest.param(
            _with(SNAPSHOT, state=VolumeState.READY), SNAPSHOT_RECORD, Step.NOTHING, id="satisfied"
        ),
        pytest.param(_with(SNAPSHOT, state=VolumeState.READY), None, Step.REPORT_LOST, id="lost"),
        pytest.param(_deleting(SNAPSHOT), SNAPSHOT_RECORD, Step.DELETE, id="deleted"),
        pytest.param(_deleting(SNAPSHOT), None, Step.RELEASE, id="released"),
    ],
)
def test_a_snapshot_takes_the_next_step(snapshot, record, step):
    assert planning.plan_snapshot(snapshot, record) is step


COPY = ImageCopy(HELD, ImageCopySpec("i", "u", "n", "p", "export-from-volume"))
DOWNLOAD = dataclasses.replace(COPY, spec=dataclasses.replace(COPY.spec, source_type="download"))
HASHED = ImageRecord(ImageKey("i", "u"), ImageFormat.RAW, 1, 1, "c", {}, NOW, NOW, "/a", "/b")
UNHASHED = dataclasses.replace(HASHED, checksum="")
READY_COPY = _with(COPY, state=CopyState.READY, checksum="c")
CONDEMNED = _with(READY_COPY, state=CopyState.FAILED, reason="Corrupt", verify_at="t0")


def _sync(checksum):
    spec = dataclasses.replace(COPY.spec, source_type="sync", expected_checksum=checksum)
    return dataclasses.replace(COPY, spec=spec)


def _asked(copy):
    annotations = {"shorthorn.io/verify-at": "t1"}
    return dataclasses.replace(copy, meta=dataclasses.replace(copy.meta, annotations=annotations))


@pytest.mark.parametrize(
    ("copy", "record", "moving", "step"),
    [
        pytest.param(_free(COPY), None, False, Step.HOLD, id="held"),
        pytest.param(COPY, None, False, Step.CAPTURE, id="an export is fixed in time first"),
        pytest.param(_with(COPY, point_in_time=NOW), None, False, Step.TRANSFER, id="then moved"),
        pytest.param(_with(COPY, point_in_time=NOW), None, True, Step.NOTHING, id="moving"),
        pytest.param(DOWNLOAD, None, False, Step.TRANSFER, id="a download has no point in time"),
        pytest.param(DOWNLOAD, UNHASHED, True, Step.NOTHING, id="found before it is durable"),
        pytest.param(DOWNLOAD, UNHASHED, False, Step.REPORT, id="complete and not yet said"),
        pytest.param(
            _with(COPY, state=CopyState.READY), UNHASHED, False, Step.HASH, id="hashed afterwards"
        ),
        pytest.param(
            _with(COPY, state=CopyState.READY), UNHASHED, True, Step.NOTHING, id="being hashed"
        ),
        pytest.param(
            _with(COPY, state=CopyState.READY), HASHED, False, Step.REPORT, id="checksum said"
        ),
        pytest.param(
            _with(COPY, state=CopyState.READY, checksum="c"),
            HASHED,
            False,
            Step.NOTHING,
            id="satisfied",
        ),
        pytest.param(_asked(READY_COPY), HASHED, False, Step.VERIFY, id="to be verified"),
        pytest.param(_asked(READY_COPY), HASHED, True, Step.NOTHING, id="being verified"),
        pytest.param(
            _asked(_with(READY_COPY, verify_at="t1")), HASHED, False, Step.NOTHING, id="verified"
        ),
        pytest.param(
            _asked(_with(READY_COPY, verify_at="t0")), HASHED, False, Step.VERIFY, id="once more"
        ),
        pytest.param(CONDEMNED, HASHED, False, Step.NOTHING, id="a record redeems no bytes"),
        pytest.param(
            _with(CONDEMNED, verify_at=""), HASHED, False, Step.REPORT, id="files came back"
        ),
        pytest.param(_deleting(CONDEMNED), HASHED, False, Step.DELETE, id="condemned and deleted"),
        pytest.param(_sync("c"), HASHED, False, Step.REPORT, id="the very bytes are there already"),
        pytest.param(_sync(""), HASHED, False, Step.REPORT, id="whatever is there is taken"),
        pytest.param(_sync("d"), HASHED, False, Step.REPORT_OTHER, id="other bytes are there"),
        pytest.param(
            _with(_sync("d"), state=CopyState.FAILED), HASHED, False, Step.NOTHING, id="said so"
        ),
        pytest.param(_deleting(_sync("d")), HASHED, False, Step.DELETE, id="other bytes removed"),
        pytest.param(_with(COPY, state=CopyState.READY), None, False, Step.REPORT_LOST, id="lost"),
        pytest.param(_with(COPY, state=CopyState.FAILED), None, False, Step.NOTHING, id="failed"),
        pytest.param(_deleting(COPY), None, True, Step.DELETE, id="deleted in mid-transfer"),
        pytest.param(_deleting(_free(COPY)), None, False, Step.NOTHING, id="released"),
    ],
)
def test_an_image_copy_takes_the_next_step(copy, record, moving, step):
    assert planning.plan_copy(copy, record, is_moving=moving) is step


def _carried_out(step, volume, record):
    """Return (volume, record) after a step, as the reconciler and the API server make it."""
    match step:
        case Step.HOLD:
            return dataclasses.replace(volume, meta=HELD), record
        case Step.CREATE | Step.EXPAND:
            return volume, dataclasses.replace(RECORD, capacity_bytes=volume.spec.capacity_bytes)
        case Step.REPORT:
            capacity = record.capacity_bytes
            return _with(volume, state=VolumeState.READY, capacity_bytes=capacity), record
        case Step.REPORT_LOST:
            return _with(volume, state=VolumeState.FAILED), record
        case Step.DELETE:
            return volume, None
        case Step.RELEASE:
            return None, record
    return volume, record


@given(
    held=st.booleans(),
    deleting=st.booleans(),
    state=st.sampled_from(VolumeState),
    wanted=st.integers(1, 3),
    there=st.none() | st.integers(1, 3),
)
def test_planning_a_volume_ends_from_every_state(held, deleting, state, wanted, there):
    meta = Meta("v", finalizers=(DATA_FINALIZER,) if held else (), deleting=deleting)
    volume = Volume(meta, VolumeSpec("v", "n", "p", wanted), VolumeStatus(state))
    record = dataclasses.replace(RECORD, capacity_bytes=there) if there else None
    for _ in range(8):
        step = planning.plan_volume(volume, record)
        if step is Step.NOTHING:
            break
        volume, record = _carried_out(step, volume, record)
    assert planning.plan_volume(volume, record) is Step.NOTHING
    if deleting and held:
        assert volume is None
        assert record is None
