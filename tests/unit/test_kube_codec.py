"""Domain objects survive the way to custom resources and back."""

from datetime import UTC, datetime

import pytest

from shorthorn.domain import models
from shorthorn.kube import codec, resources

NOW = datetime(2026, 11, 23, 6, 7, 8, 123456, tzinfo=UTC)
META = models.Meta(
    name="a", uid="u", resource_version="7", generation=2, created_at=None, finalizers=("f",)
)

VOLUME = models.Volume(
    META,
    models.VolumeSpec(
        csi_name="a",
        node_id="n",
        pool_uuid="p",
        capacity_bytes=4096,
        source=models.VolumeSource(image="i", image_uuid="x", handle="bi://…"),
        parameters={"k": "v"},
    ),
    models.VolumeStatus(state=models.VolumeState.READY, allocated_bytes=3, observed_generation=2),
)
IMAGE = models.BackingImage(
    META,
    models.BackingImageSpec("download", {"url": "http://x"}, disk_selector=("fast",)),
    models.BackingImageStatus(
        uuid="abcd",
        point_in_time=NOW,
        disk_file_status={
            "p": models.DiskFileStatus(models.CopyState.IN_PROGRESS, 40, "m", changed_at=NOW)
        },
        conditions=(models.Condition("Ready", False, "InProgress", "40 %", NOW),),
    ),
)


@pytest.mark.parametrize(
    ("kind", "value"), [(resources.VOLUME, VOLUME), (resources.BACKING_IMAGE, IMAGE)]
)
def test_an_object_comes_back_as_it_was(kind, value):
    data = kind.to_object(value)
    data["metadata"]["generation"] = 2
    assert kind.from_object(data) == value


def test_keys_are_the_ones_of_longhorn_and_kubernetes():
    status = resources.BACKING_IMAGE.to_object(IMAGE)["status"]
    assert status["diskFileStatusMap"]["p"] == {
        "state": "in-progress",
        "progress": 40,
        "message": "m",
        "lastStateTransitionTime": "2026-11-23T06:07:08.123456Z",
    }
    assert status["conditions"][0]["status"] == "False"
    assert status["conditions"][0]["lastTransitionTime"] == "2026-11-23T06:07:08.123456Z"
    assert resources.VOLUME.to_object(VOLUME)["spec"]["poolUUID"] == "p"


def test_unknown_keys_of_a_newer_writer_are_ignored():
    data = resources.VOLUME.to_object(VOLUME)
    data["spec"]["later"] = 1
    assert resources.VOLUME.from_object(data).spec == VOLUME.spec


def test_times_are_read_in_every_offset():
    assert codec.parse_time("2026-11-23T07:07:08.123456+01:00") == NOW


def test_zeros_are_said_and_nothing_is_not():
    fresh = models.Volume(META, VOLUME.spec, models.VolumeStatus())
    status = resources.VOLUME.to_object(fresh)["status"]
    assert status["allocatedBytes"] == 0
    assert "message" not in status
