"""The API server of a running service, as tests talk to it: plain HTTP and JSON.

Uses nothing of the package, so that the code under test does not vouch for itself. Waiting is by
watch, and goes on over restarts of the service.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import yaml

Object = dict[str, Any]

_STORAGE = "/apis/storage.k8s.io/v1"
_SNAPSHOT = "/apis/snapshot.storage.k8s.io/v1"
#: Kind: where it is served, and whether in namespaces.
_KINDS = {
    "Namespace": ("/api/v1", "namespaces", False),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims", True),
    "PersistentVolume": ("/api/v1", "persistentvolumes", False),
    "Event": ("/api/v1", "events", True),
    "Node": ("/api/v1", "nodes", False),
    "Pod": ("/api/v1", "pods", True),
    "Secret": ("/api/v1", "secrets", True),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases", True),
    "CSIDriver": (_STORAGE, "csidrivers", False),
    "CSINode": (_STORAGE, "csinodes", False),
    "CSIStorageCapacity": (_STORAGE, "csistoragecapacities", True),
    "VolumeAttachment": (_STORAGE, "volumeattachments", False),
    "StorageClass": (_STORAGE, "storageclasses", False),
    "VolumeSnapshot": (_SNAPSHOT, "volumesnapshots", True),
    "VolumeSnapshotContent": (_SNAPSHOT, "volumesnapshotcontents", False),
    "VolumeSnapshotClass": (_SNAPSHOT, "volumesnapshotclasses", False),
    "BackingImage": ("/apis/longhorn.io/v1beta2", "backingimages", True),
    "ImageCopy": ("/apis/shorthorn.io/v1alpha1", "imagecopies", True),
    "Volume": ("/apis/shorthorn.io/v1alpha1", "volumes", True),
    "Snapshot": ("/apis/shorthorn.io/v1alpha1", "snapshots", True),
    "Pool": ("/apis/shorthorn.io/v1alpha1", "pools", True),
}
SYSTEM = "longhorn-system"
PATIENCE_S = 60.0
_RECONNECT_S = 0.05


class _Patient(httpx2.HTTPTransport):
    """Asks again when it is asked to, as kubectl does: Kubernetes is busy for a moment with a kind
    that has just been made ("storage is (re)initializing").
    """

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        deadline = time.monotonic() + PATIENCE_S
        while (answer := super().handle_request(request)).status_code == 429:
            if time.monotonic() > deadline:
                break
            answer.close()
            threading.Event().wait(float(answer.headers.get("Retry-After", "1")))
        return answer


class Api:
    """One API server, found through a kubeconfig that may change while we look."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._read = ""
        self._client: httpx2.Client | None = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def client(self) -> httpx2.Client:
        """A client for the kubeconfig as it is now."""
        text = self._kubeconfig.read_text()
        if self._client is None or text != self._read:
            self.close()
            config = yaml.safe_load(text)
            cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            self._read = text
            self._client = httpx2.Client(
                base_url=cluster["server"],
                headers={"Authorization": f"Bearer {user['token']}"},
                transport=_Patient(verify=ssl.create_default_context(cadata=authority)),
                trust_env=False,
                timeout=60,
            )
        return self._client

    def path(self, kind: str, namespace: str = "", name: str = "") -> str:
        root, plural, is_namespaced = _KINDS[kind]
        place = f"/namespaces/{namespace}" if is_namespaced and namespace else ""
        return f"{root}{place}/{plural}" + (f"/{name}" if name else "")

    def create(self, obj: Object) -> Object:
        path = self.path(obj["kind"], obj["metadata"].get("namespace", ""))
        answer = self.client.post(path, json=obj)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        answer = self.client.get(self.path(kind, namespace, name))
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def get(self, kind: str, namespace: str, name: str) -> Object:
        found = self.find(kind, namespace, name)
        assert found is not None, f"{kind} {namespace}/{name} does not exist"
        return found

    def list(self, kind: str, namespace: str = "") -> list[Object]:
        answer = self.client.get(self.path(kind, namespace))
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])

    def merge(self, kind: str, namespace: str, name: str, patch: Object) -> Object:
        answer = self.client.patch(
            self.path(kind, namespace, name),
            content=json.dumps(patch),
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def delete(self, kind: str, namespace: str, name: str) -> None:
        answer = self.client.delete(self.path(kind, namespace, name))
        assert answer.status_code in (200, 404), answer.text

    def wait(
        self,
        kind: str,
        namespace: str,
        name: str,
        until: Callable[[Object | None], bool],
        *,
        timeout_s: float = PATIENCE_S,
    ) -> Object | None:
        """Return the object (None: gone) as soon as `until` holds; fails after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        last: Object | None = None
        while time.monotonic() < deadline:
            try:
                for last in self._follow(kind, namespace, name, deadline):
                    if until(last):
                        return last
            except (httpx2.HTTPError, OSError, ValueError):
                threading.Event().wait(_RECONNECT_S)
        said = [f"{e['reason']}: {e['message']}" for e in self.list("Event", namespace)]
        raise AssertionError(f"{kind} {namespace}/{name} after {timeout_s} s: {last}; {said[-9:]}")

    def _follow(
        self, kind: str, namespace: str, name: str, deadline: float
    ) -> Iterator[Object | None]:
        """Yield the object as it is, and after every change until a connection breaks."""
        query = {"fieldSelector": f"metadata.name={name}"}
        answer = self.client.get(self.path(kind, namespace), params=query)
        answer.raise_for_status()
        listing = answer.json()
        yield next(iter(listing["items"]), None)
        left_s = max(1, int(deadline - time.monotonic()))
        query |= {
            "watch": "1",
            "resourceVersion": listing["metadata"]["resourceVersion"],
            "timeoutSeconds": str(left_s),
        }
        path = self.path(kind, namespace)
        with self.client.stream("GET", path, params=query, timeout=left_s + 5) as lines:
            for line in lines.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield None if event["type"] == "DELETED" else event["object"]

    def wait_gone(self, kind: str, namespace: str, name: str) -> None:
        self.wait(kind, namespace, name, lambda found: found is None)

    def wait_event(
        self, kind: str, namespace: str, name: str, reason: str, *, holding: str = ""
    ) -> str:
        """Return the message of an event about the object that holds a text, once there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for event in self.list("Event", namespace):
                about = event["involvedObject"]
                is_it = (about["kind"], about.get("name"), event["reason"]) == (kind, name, reason)
                if is_it and holding in event["message"]:
                    return str(event["message"])
            threading.Event().wait(_RECONNECT_S)
        said = [
            (e["involvedObject"].get("name"), e["reason"], e["message"]) for e in self.list("Event")
        ]
        raise AssertionError(f"no event {reason} about {kind} {name}; there are {said[-9:]}")

    def wait_error(self, namespace: str, name: str) -> str:
        """Return the message in the status of a VolumeSnapshot, once there is one."""
        found = self.wait("VolumeSnapshot", namespace, name, lambda s: bool(error_of(s)))
        return error_of(found)


def error_of(snapshot: Object | None) -> str:
    """Return the error message in a status, or nothing."""
    return str((((snapshot or {}).get("status") or {}).get("error") or {}).get("message", ""))


def is_bound(claim: Object | None) -> bool:
    return ((claim or {}).get("status") or {}).get("phase") == "Bound"


def is_ready(snapshot: Object | None) -> bool:
    return bool(((snapshot or {}).get("status") or {}).get("readyToUse"))


class Namespace:
    """One test's own namespace, and what users make in it."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name

    def storage_class(self, name: str, **fields: Any) -> str:
        """Make a StorageClass of a name of this test's own."""
        name = f"{self.name}-{name}"
        self.api.create(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": name},
                "provisioner": "driver.longhorn.io",
                **fields,
            }
        )
        return name

    def snapshot_class(
        self, name: str, policy: str = "Delete", /, *, is_default: bool = False, **say: Any
    ) -> str:
        key = "snapshot.storage.kubernetes.io/is-default-class"
        annotations = {key: "true"} if is_default else {}
        name = f"{self.name}-{name}"
        self.api.create(
            {
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": "VolumeSnapshotClass",
                "metadata": {"name": name, "annotations": annotations},
                "driver": "driver.longhorn.io",
                "deletionPolicy": policy,
                "parameters": {key.replace("_", "-"): value for key, value in say.items()},
            }
        )
        return name

    def claim(
        self,
        name: str,
        size: str = "64Mi",
        *,
        modes: tuple[str, ...] = ("ReadWriteOnce",),
        storage_class: str | None = None,
        snapshot: str = "",
        claim: str = "",
        **spec: Any,
    ) -> Object:
        """Make a claim, from a snapshot or another claim where they are named."""
        body: Object = {
            "accessModes": list(modes),
            "resources": {"requests": {"storage": size}},
            **spec,
        }
        if storage_class is not None:
            body["storageClassName"] = storage_class
        if snapshot:
            group = "snapshot.storage.k8s.io"
            body["dataSource"] = {"apiGroup": group, "kind": "VolumeSnapshot", "name": snapshot}
        if claim:
            body["dataSource"] = {"kind": "PersistentVolumeClaim", "name": claim}
        return self.api.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": self.name},
                "spec": body,
            }
        )

    def bound(self, name: str) -> Object:
        """Return the claim once it is bound."""
        found = self.api.wait("PersistentVolumeClaim", self.name, name, is_bound)
        assert found is not None
        return found

    def volume_of(self, name: str) -> Object:
        """Return the PersistentVolume of a bound claim."""
        return self.api.get("PersistentVolume", "", self.bound(name)["spec"]["volumeName"])

    def snapshot(
        self, name: str, *, claim: str = "", content: str = "", cls: str | None = None
    ) -> Object:
        source = {"persistentVolumeClaimName": claim} if claim else {}
        if content:
            source = {"volumeSnapshotContentName": content}
        spec: Object = {"source": source}
        if cls is not None:
            spec["volumeSnapshotClassName"] = cls
        return self.api.create(
            {
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": "VolumeSnapshot",
                "metadata": {"name": name, "namespace": self.name},
                "spec": spec,
            }
        )

    def ready(self, name: str) -> Object:
        """Return the VolumeSnapshot once it is ready."""
        found = self.api.wait("VolumeSnapshot", self.name, name, is_ready)
        assert found is not None
        return found

    def content(
        self, name: str, handle: str, *, snapshot: str, policy: str = "Delete", **spec: Any
    ) -> str:
        """Make a pre-provisioned VolumeSnapshotContent of a name of this test's own."""
        name = f"{self.name}-{name}"
        self.api.create(
            {
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": "VolumeSnapshotContent",
                "metadata": {"name": name},
                "spec": {
                    "deletionPolicy": policy,
                    "driver": "driver.longhorn.io",
                    "source": {"snapshotHandle": handle},
                    "volumeSnapshotRef": {"name": snapshot, "namespace": self.name},
                    **spec,
                },
            }
        )
        return name

    def content_of(self, snapshot: str) -> Object:
        status = self.ready(snapshot)["status"]
        return self.api.get("VolumeSnapshotContent", "", status["boundVolumeSnapshotContentName"])

    def delete_claim(self, name: str, *, wait: bool = True) -> None:
        self.api.delete("PersistentVolumeClaim", self.name, name)
        if wait:
            self.api.wait_gone("PersistentVolumeClaim", self.name, name)

    def delete_snapshot(self, name: str, *, wait: bool = True) -> None:
        self.api.delete("VolumeSnapshot", self.name, name)
        if wait:
            self.api.wait_gone("VolumeSnapshot", self.name, name)

    def event(self, kind: str, name: str, reason: str, *, holding: str = "") -> str:
        """Wait for an event about an object of this namespace; return its message."""
        return self.api.wait_event(kind, self.name, name, reason, holding=holding)

    def remove(self) -> None:
        """Delete the namespace with all that is in it, and wait until all of it has gone."""
        volumes = [
            v["metadata"]["name"]
            for v in self.api.list("PersistentVolume")
            if v["spec"].get("claimRef", {}).get("namespace") == self.name
            and v["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        ]
        self.api.delete("Namespace", "", self.name)
        self.api.wait_gone("Namespace", "", self.name)
        for volume in volumes:
            self.api.wait_gone("PersistentVolume", "", volume)
        for kind in ("StorageClass", "VolumeSnapshotClass", "VolumeSnapshotContent"):
            for obj in self.api.list(kind):
                if obj["metadata"]["name"].startswith(f"{self.name}-"):
                    self.api.delete(kind, "", obj["metadata"]["name"])


@contextlib.contextmanager
def namespace(api: Api, name: str) -> Iterator[Namespace]:
    """A namespace that is removed at the end, with a wait for all it held."""
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    own = Namespace(api, name)
    try:
        yield own
    finally:
        own.remove()
