"""What a claim is to begin as: its dataSource, resolved to a CSI content source.

Owns: every check that external-provisioner makes before it asks the driver. Must never: call the
driver. Used by `standalone.claims`. Source: Kubernetes documentation of volume snapshots and
CSI volume cloning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.standalone.objects import Object, Objects, annotations_of, is_deleting, key_of
from shorthorn.standalone.quantity import parse_quantity

_SNAPSHOT_GROUP = "snapshot.storage.k8s.io"
_ALLOW_MODE_CHANGE = "snapshot.storage.kubernetes.io/allow-volume-mode-change"


class NotYet(Exception):
    """The source is not usable now; it may become so. The message says what is awaited."""


class Refused(Exception):
    """The source cannot be used as asked for. The message says what to change."""


@dataclass(frozen=True)
class Lookups:
    """Where sources are looked up."""

    claims: Objects
    volumes: Objects
    snapshots: Objects
    contents: Objects


async def content_source(
    claim: Object, driver: str, lookups: Lookups
) -> csi_pb2.VolumeContentSource | None:
    """Return the content source of a claim, None for a blank volume. Raises NotYet, Refused."""
    source = source_of(claim)
    if not source:
        return None
    namespace = claim["metadata"]["namespace"]
    if source.get("namespace", namespace) != namespace:
        raise Refused(f"a dataSource in another namespace ({source['namespace']}) is not supported")
    key = f"{namespace}/{source['name']}"
    match source.get("apiGroup") or "", source["kind"]:
        case ("snapshot.storage.k8s.io", "VolumeSnapshot"):
            return await _from_snapshot(claim, key, driver, lookups)
        case ("", "PersistentVolumeClaim"):
            return await _from_claim(claim, key, driver, lookups)
        case (group, kind):
            hint = f"; write apiGroup: {_SNAPSHOT_GROUP}" if kind == "VolumeSnapshot" else ""
            raise Refused(
                f"dataSource of kind {kind} in API group {group!r} is not supported{hint}"
            )


def source_of(claim: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the claim's dataSourceRef or dataSource, which are equal where both are given; empty:
    the claim begins blank.
    """
    source: Mapping[str, Any] = claim["spec"].get("dataSourceRef") or claim["spec"].get(
        "dataSource", {}
    )
    return source


async def _from_snapshot(
    claim: Object, key: str, driver: str, lookups: Lookups
) -> csi_pb2.VolumeContentSource:
    snapshot = await lookups.snapshots.find(key)
    if snapshot is None:
        raise NotYet(f"VolumeSnapshot {key} does not exist")
    if is_deleting(snapshot):
        raise Refused(f"VolumeSnapshot {key} is being deleted")
    status = snapshot.get("status") or {}
    if not status.get("readyToUse"):
        problem = (status.get("error") or {}).get("message", "")
        raise NotYet(
            f"VolumeSnapshot {key} is not ready to use" + (f": {problem}" if problem else "")
        )
    content = await lookups.contents.find(status.get("boundVolumeSnapshotContentName") or "-")
    if content is None:
        raise NotYet(f"VolumeSnapshot {key} is not bound to a VolumeSnapshotContent")
    if content["spec"]["driver"] != driver:
        raise Refused(f"VolumeSnapshot {key} belongs to driver {content['spec']['driver']}")
    _check_mode(claim, content)
    _check_size(claim, status)
    handle = (content.get("status") or {}).get("snapshotHandle")
    if not handle:
        raise NotYet(
            f"VolumeSnapshotContent {content['metadata']['name']} has no snapshotHandle yet"
        )
    return csi_pb2.VolumeContentSource(
        snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=handle)
    )


def _check_mode(claim: Object, content: Mapping[str, Any]) -> None:
    """Restoring in another volume mode needs an administrator's consent."""
    source_mode = content["spec"].get("sourceVolumeMode")
    wanted = claim["spec"].get("volumeMode", "Filesystem")
    if source_mode in (None, wanted):
        return
    if annotations_of(content).get(_ALLOW_MODE_CHANGE) == "true":
        return
    raise Refused(
        f"the snapshot was taken of a {source_mode} volume and the claim asks for {wanted}; "
        f"annotate VolumeSnapshotContent {content['metadata']['name']} with "
        f'{_ALLOW_MODE_CHANGE}: "true" to allow it'
    )


def _check_size(claim: Object, status: Mapping[str, Any]) -> None:
    smallest = status.get("restoreSize")
    wanted = claim["spec"]["resources"]["requests"]["storage"]
    if smallest and parse_quantity(wanted) < parse_quantity(str(smallest)):
        raise Refused(
            f"requested volume size {wanted} is less than the size {smallest} of the snapshot"
        )


async def _from_claim(
    claim: Object, key: str, driver: str, lookups: Lookups
) -> csi_pb2.VolumeContentSource:
    source = await lookups.claims.find(key)
    if source is None:
        raise NotYet(f"PersistentVolumeClaim {key} does not exist")
    if is_deleting(source):
        raise Refused(f"PersistentVolumeClaim {key} is being deleted")
    if (source.get("status") or {}).get("phase") != "Bound":
        raise NotYet(f"PersistentVolumeClaim {key} is not bound yet")
    volume = await lookups.volumes.find(source["spec"]["volumeName"])
    csi = (volume or {}).get("spec", {}).get("csi") or {}
    if csi.get("driver") != driver:
        raise Refused(f"PersistentVolumeClaim {key} is not a volume of driver {driver}")
    modes = [obj["spec"].get("volumeMode", "Filesystem") for obj in (claim, source)]
    if modes[0] != modes[1]:
        raise Refused(f"{key_of(source)} has volumeMode {modes[1]}, the claim asks for {modes[0]}")
    return csi_pb2.VolumeContentSource(
        volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=csi["volumeHandle"])
    )
