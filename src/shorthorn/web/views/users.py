"""Who uses a backing image, as a small tree.

Owns: the ways by which things hang on an image: volumes cloned from it with their claims, and
VolumeSnapshotContents whose handle names it with their snapshots and the claims made from those.
Pure. Called by `pages.image`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shorthorn.domain import handles
from shorthorn.domain.models import BackingImage, Volume

Objects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Node:
    """One thing of the tree. `kind` in words, `note`: what of its state matters."""

    kind: str
    name: str
    note: str = ""
    link: str = ""
    below: Sequence[Node] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the user may list of Kubernetes' own objects."""

    claims: Objects = ()
    persistent_volumes: Objects = ()
    volume_snapshots: Objects = ()
    contents: Objects = ()
    #: Kinds that the user may not list.
    hidden: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class Users:
    """The tree, and what of it matters to who deletes the image."""

    nodes: Sequence[Node]
    volumes: int
    contents: Sequence[str]
    #: Contents that delete the image with their snapshot.
    deleting_contents: Sequence[str]
    #: Claims that are not bound yet and wait for a volume of this image.
    pending_claims: Sequence[str]
    clones: Sequence[str]
    hidden: Sequence[str]


def users_of(
    image: BackingImage,
    volumes: Sequence[Volume],
    images: Sequence[BackingImage],
    cluster: Cluster,
) -> Users:
    """Return who uses `image`. `volumes`: those cloned from it; `images`: all there are."""
    name = image.meta.name
    claims_by_snapshot = _claims_by_snapshot(cluster.claims)
    contents = [c for c in cluster.contents if _image_of_content(c) == name]
    pending: list[str] = []
    content_nodes = [
        _content_node(content, claims_by_snapshot, pending, cluster) for content in contents
    ]
    clones = [i.meta.name for i in images if i.spec.source_parameters.get("backing-image") == name]
    clone_nodes = [Node("Backing image", c, "made from it", f"/images/{c}") for c in clones]
    volume_of = {_volume_handle(pv): pv for pv in cluster.persistent_volumes}
    volume_nodes = [_volume_node(v, volume_of.get(v.meta.name)) for v in volumes]
    return Users(
        nodes=[*volume_nodes, *content_nodes, *clone_nodes],
        volumes=len(volumes),
        contents=[_name(c) for c in contents],
        deleting_contents=[
            _name(c) for c in contents if c["spec"].get("deletionPolicy") == "Delete"
        ],
        pending_claims=pending,
        clones=clones,
        hidden=cluster.hidden,
    )


def _volume_node(volume: Volume, pv: Mapping[str, Any] | None) -> Node:
    note = f"{volume.status.state} on {volume.spec.node_id}"
    below = []
    if pv is not None:
        claim = pv["spec"].get("claimRef") or {}
        if claim.get("name"):
            text = f"{claim.get('namespace', '')}/{claim['name']}"
            below.append(Node("Claim", text, str((pv.get("status") or {}).get("phase", ""))))
    link = f"/volumes?q={volume.meta.name}"
    return Node("Volume", volume.meta.name, note, link, below)


def _content_node(
    content: Mapping[str, Any],
    claims: Mapping[tuple[str, str], Objects],
    pending: list[str],
    cluster: Cluster,
) -> Node:
    ref = content["spec"].get("volumeSnapshotRef") or {}
    key = (str(ref.get("namespace", "")), str(ref.get("name", "")))
    claim_nodes = []
    for claim in claims.get(key, ()):
        phase = str((claim.get("status") or {}).get("phase", "Pending"))
        text = f"{key[0]}/{_name(claim)}"
        if phase == "Pending":
            pending.append(text)
        claim_nodes.append(Node("Claim", text, phase))
    below: list[Node] = []
    if any((_namespace(s), _name(s)) == key for s in cluster.volume_snapshots):
        below.append(Node("VolumeSnapshot", "/".join(key), "", "", claim_nodes))
    else:
        below += claim_nodes
    is_ready = bool((content.get("status") or {}).get("readyToUse"))
    policy = str(content["spec"].get("deletionPolicy", ""))
    note = ", ".join(("ready" if is_ready else "not ready", f"policy {policy}"))
    return Node("VolumeSnapshotContent", _name(content), note, "", below)


def _claims_by_snapshot(claims: Objects) -> Mapping[tuple[str, str], Objects]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for claim in claims:
        spec = claim.get("spec") or {}
        source = spec.get("dataSourceRef") or spec.get("dataSource") or {}
        if source.get("kind") == "VolumeSnapshot":
            namespace = str(source.get("namespace") or _namespace(claim))
            found[namespace, str(source.get("name", ""))].append(claim)
    return found


def _image_of_content(content: Mapping[str, Any]) -> str | None:
    spec = content.get("spec") or {}
    told = (content.get("status") or {}).get("snapshotHandle")
    handle = (spec.get("source") or {}).get("snapshotHandle") or told or ""
    return handles.find_backing_image(str(handle))


def _volume_handle(pv: Mapping[str, Any]) -> str:
    return str(((pv.get("spec") or {}).get("csi") or {}).get("volumeHandle", ""))


def _name(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"]["name"])


def _namespace(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"].get("namespace", ""))
