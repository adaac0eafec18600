"""Claims and snapshots through the Kubernetes API, as a user on one host has them.

Owns: one snapshot and one restored claim by kubectl, then many restored claims at once. A watch
opened before tells when an object got there, so that nobody is asked in a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.disks import MIB
from bench.figures import Section, median, percentile
from bench.watches import Watch, watching
from bench.workspace import BenchFailed
from shorthorn.kube.client import connect
from shorthorn.standalone import objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lightkube import AsyncClient

    from bench.workspace import Service

_SIZE_BYTES = 64 * MIB
#: Requests under way at once when many claims are made.
_PARALLEL = 16
_CLASS: objects.Object = {
    "apiVersion": "snapshot.storage.k8s.io/v1",
    "kind": "VolumeSnapshotClass",
    "metadata": {"name": "bench"},
    "driver": "driver.longhorn.io",
    "deletionPolicy": "Delete",
    "parameters": {"type": "bi", "export-type": "qcow2"},
}


@dataclass(frozen=True, slots=True)
class Host:
    """A client of the service, and watches that were open before anything was made."""

    client: AsyncClient
    snapshots: Watch
    claims: Watch
    volumes: Watch


async def by_kubectl(service: Service, *, rounds: int) -> Section:
    """Measure `kubectl apply` of one snapshot and of one restored claim."""
    section = Section("one host, kubectl apply to done")
    async with _claim_with_data(service) as host:
        for number in range(rounds):
            snapshot, claim = _snapshot(f"s{number}"), _claim(f"r{number}", snapshot=f"s{number}")
            await _apply(service, section, host.snapshots, snapshot, "snapshot ready")
            await _apply(service, section, host.claims, claim, "restored claim bound")
        await _delete_restored(host)
    return section


async def restored_at_once(service: Service, *, count: int) -> Section:
    """Measure `count` claims restored from one image, all asked for at once."""
    section = Section(f"{count} claims restored from one image")
    async with _claim_with_data(service) as host:
        await _create(host.client, objects.SNAPSHOT, _snapshot("s"))
        await host.snapshots.until(lambda: "s" in host.snapshots.reached)
        names = [f"many-{number:04d}" for number in range(count)]
        asked = await _ask_for(host.client, names)
        bound = host.claims.reached
        await host.claims.until(lambda: bound.keys() >= set(names))
        total_s = max(bound[name] for name in names) - min(asked.values())
        waits = [bound[name] - asked[name] for name in names]
        section.seconds["from create to bound"] = waits
        section.seconds["all of them"] = [total_s]
        section.figures["rate"] = f"{count / total_s:.1f} claims bound each second"
        section.figures["p50, p99"] = f"{median(waits):.2f} s, {percentile(waits, 99):.2f} s"
        begun = time.perf_counter()
        await _delete_restored(host)
        section.took("deletion of all", time.perf_counter() - begun)
    left = list((service.pool / "volumes").glob("*/*"))
    section.check("nothing is left after deletion", f"{len(left)} files", kept=not left)
    return section


async def _ask_for(client: AsyncClient, names: list[str]) -> dict[str, float]:
    """Create claims, some at a time; return when each was asked for."""
    asked: dict[str, float] = {}
    gate = asyncio.Semaphore(_PARALLEL)

    async def ask(name: str) -> None:
        async with gate:
            asked[name] = time.perf_counter()
            await _create(client, objects.PVC, _claim(name, snapshot="s"))

    await asyncio.gather(*map(ask, names))
    return asked


async def _apply(
    service: Service, section: Section, watch: Watch, obj: objects.Object, what: str
) -> None:
    name = obj["metadata"]["name"]
    begun = time.perf_counter()
    await asyncio.to_thread(_kubectl_apply, service.kubeconfig, obj)
    section.took("kubectl apply itself", time.perf_counter() - begun)
    await watch.until(lambda: name in watch.reached)
    section.took(f"from kubectl's start to {what}", watch.reached[name] - begun)
    section.took(f"from the stored object to {what}", watch.reached[name] - watch.seen[name])


def _kubectl_apply(kubeconfig: Path, obj: objects.Object) -> None:
    argv = ["kubectl", f"--kubeconfig={kubeconfig}", "apply", "-f", "-"]
    done = subprocess.run(argv, input=json.dumps(obj), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchFailed(f"kubectl apply: {done.stderr}")


@contextlib.asynccontextmanager
async def _claim_with_data(service: Service) -> AsyncIterator[Host]:
    """Yield a host that has a snapshot class and a bound claim with data; remove all at the end."""
    client = connect(service.kubeconfig, namespace="default")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        snapshots, claims, volumes = [
            await stack.enter_async_context(watching(client, resource, is_wanted))
            for resource, is_wanted in (
                (objects.SNAPSHOT, _is_ready),
                (objects.PVC, _is_bound),
                (objects.PV, _is_bound),
            )
        ]
        host = Host(client, snapshots, claims, volumes)
        await _create(client, objects.SNAPSHOT_CLASS, _CLASS)
        await _create(client, objects.PVC, _claim("source"))
        await claims.until(lambda: "source" in claims.reached)
        await volumes.until(lambda: bool(volumes.seen))
        [data] = (service.pool / "volumes").glob("*/volume.raw")
        data.write_bytes(b"data" * (_SIZE_BYTES // 4))
        yield host
        for name in list(snapshots.seen):
            await client.delete(objects.SNAPSHOT, name, namespace="default")
        await client.delete(objects.PVC, "source", namespace="default")
        await client.delete(objects.SNAPSHOT_CLASS, "bench")
        for watch in (snapshots, claims, volumes):
            await watch.until(partial(_has_nothing, watch))


def _has_nothing(watch: Watch) -> bool:
    return not watch.seen


async def _create(client: Any, resource: Any, obj: objects.Object) -> None:
    place = {"namespace": "default"} if "namespace" in obj["metadata"] else {}
    await client.create(resource(obj), **place)


async def _delete_restored(host: Host) -> None:
    restored = host.claims.seen.keys() - {"source"}
    for name in restored:
        await host.client.delete(objects.PVC, name, namespace="default")
    await host.claims.until(lambda: not restored & host.claims.seen.keys())


def _is_ready(snapshot: Any) -> bool:
    return bool((snapshot.get("status") or {}).get("readyToUse"))


def _is_bound(obj: Any) -> bool:
    return (obj.get("status") or {}).get("phase") == "Bound"


def _snapshot(name: str) -> objects.Object:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "volumeSnapshotClassName": "bench",
            "source": {"persistentVolumeClaimName": "source"},
        },
    }


def _claim(name: str, *, snapshot: str = "") -> objects.Object:
    claim: objects.Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "storageClassName": "longhorn",
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block",
            "resources": {"requests": {"storage": str(_SIZE_BYTES)}},
        },
    }
    if snapshot:
        claim["spec"]["dataSource"] = {
            "apiGroup": "snapshot.storage.k8s.io",
            "kind": "VolumeSnapshot",
            "name": snapshot,
        }
    return claim
