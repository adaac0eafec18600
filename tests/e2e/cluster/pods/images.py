"""Container images without a registry: archives as `ctr image import` takes them.

Owns the archives, in the OCI's image layout, and their making. The Shorthorn image is that of
`scripts/container-rootfs`, under the entry point and environment of the Containerfile; a sidecar's
is its program and nothing else. Called by `installation`.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.cluster.processes import binary

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: Where the programs of a scratch image are.
_PROGRAM = "program"


@dataclass(frozen=True)
class Layer:
    """A tar file, not compressed, and its SHA-256 as hexadecimal digits."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Image:
    """One image: its name with tag, its layers from below, and what its containers run."""

    name: str
    layers: tuple[Layer, ...]
    entrypoint: tuple[str, ...]
    environment: tuple[str, ...] = ()


def layer(path: Path) -> Layer:
    """Return the layer that a tar file is."""
    with path.open("rb") as file:
        return Layer(path, hashlib.file_digest(file, "sha256").hexdigest())


def program_layer(path: Path, name: str) -> Layer:
    """Make a layer of one program that `scripts/e2e-tools` builds, as `/program`."""
    with tarfile.open(path, "w") as tar:
        tar.add(binary(name), _PROGRAM, filter=_of_root)
    return layer(path)


def busybox_layer(path: Path, busybox: Path) -> Layer:
    """Make a layer of a static busybox under all its names, and the usual directories."""
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout
    with tarfile.open(path, "w") as tar:
        for directory in ("bin", "tmp", "etc", "dev", "proc", "sys"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox", filter=_of_root)
        for name in names.split():
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return layer(path)


def write_archive(path: Path, images: Sequence[Image]) -> None:
    """Write an archive of these images; layers that they share are in it once."""
    blobs: dict[str, Path | bytes] = {}
    manifests = []
    for image in images:
        layers = []
        for one in image.layers:
            blobs[one.digest] = one.path
            layers.append(_descriptor(_LAYER, one.digest, one.path.stat().st_size))
        config = _put(blobs, _CONFIG, _config(image))
        body = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
        manifest = _put(blobs, _MANIFEST, body)
        # By this annotation containerd knows the whole name, registry and all.
        manifests.append({**manifest, "annotations": {"io.containerd.image.name": image.name}})
    index = {"schemaVersion": 2, "manifests": manifests}
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps(index).encode())
        for digest, blob in blobs.items():
            if isinstance(blob, Path):
                tar.add(blob, f"blobs/sha256/{digest}")
            else:
                _add(tar, f"blobs/sha256/{digest}", blob)


def _config(image: Image) -> dict[str, Any]:
    return {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": list(image.entrypoint), "Env": list(image.environment)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one.digest}" for one in image.layers]},
    }


def _put(blobs: dict[str, Path | bytes], kind: str, body: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(body).encode()
    digest = hashlib.sha256(text).hexdigest()
    blobs[digest] = text
    return _descriptor(kind, digest, len(text))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(body)
    tar.addfile(entry, io.BytesIO(body))


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode = 0o755
    return entry
