"""What users of a cluster do: claims, pods that use them, snapshots, and looking at the result.

Owns: those objects of one namespace. Must never: reach round Kubernetes, but for the mounting that
a kubelet would do (`node_calls`), where there is none. Called by tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.release import NAMESPACE, Node, Release
from tests.integration.daemon_process import poll
from tests.integration.service_api import Api, Object, is_bound, is_ready

PATIENCE_S = 90.0


class Tenant:
    """Somebody with a namespace of their own: claims and snapshots, in any cluster."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    @property
    def api(self) -> Api:
        return self.plane.api

    def apply(self, manifests: Any) -> str:
        return self.plane.apply(manifests)

    # --- claims

    def claim(
        self, name: str, size: str = "64Mi", *, snapshot: str = "", node: str = "", **spec: Any
    ) -> Object:
        """Make a claim, from a snapshot where one is named.

        Args: node: written into the claim as the scheduler would for the first pod that uses it.
        """
        body: Object = {
            "storageClassName": "longhorn",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
            **spec,
        }
        if snapshot:
            group = "snapshot.storage.k8s.io"
            body["dataSource"] = {"apiGroup": group, "kind": "VolumeSnapshot", "name": snapshot}
        meta: Object = {"name": name, "namespace": self.namespace}
        if node:
            meta["annotations"] = {"volume.kubernetes.io/selected-node": node}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta}
        return self.api.create({**claim, "spec": body})

    def bound(self, claim: str) -> Object:
        """Return the PersistentVolume of a claim once it is bound."""
        found = self.api.wait(
            "PersistentVolumeClaim", self.namespace, claim, is_bound, timeout_s=PATIENCE_S
        )
        assert found is not None
        return self.api.get("PersistentVolume", "", found["spec"]["volumeName"])

    # --- snapshots

    def snapshot_class(self, name: str, policy: str = "Delete", **parameters: str) -> str:
        name = f"{self.namespace}-{name}"
        given = {key.replace("_", "-"): value for key, value in parameters.items()}
        cls = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass"}
        self.api.create(
            {
                **cls,
                "metadata": {"name": name},
                "driver": "driver.longhorn.io",
                "deletionPolicy": policy,
                "parameters": given,
            }
        )
        return name

    def snapshot(self, name: str, claim: str, cls: str) -> Object:
        meta = {"name": name, "namespace": self.namespace}
        source = {"persistentVolumeClaimName": claim}
        shot = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot"}
        spec = {"volumeSnapshotClassName": cls, "source": source}
        return self.api.create({**shot, "metadata": meta, "spec": spec})

    def ready(self, snapshot: str) -> Object:
        found = self.api.wait(
            "VolumeSnapshot", self.namespace, snapshot, is_ready, timeout_s=PATIENCE_S
        )
        assert found is not None
        return found

    def image_of(self, snapshot: str) -> Object:
        """Return the BackingImage that a ready snapshot is."""
        uid = self.ready(snapshot)["metadata"]["uid"]
        return self.api.get("BackingImage", NAMESPACE, f"snapshot-{uid}")

    def remove(self) -> None:
        """Delete the namespace with all in it, and wait until it is gone."""
        self.plane.kubectl(
            "delete", "namespace", self.namespace, "--timeout=120s", "--ignore-not-found"
        )


class User(Tenant):
    """A tenant where no kubelet runs: the test mounts what a pod uses."""

    def __init__(self, release: Release, namespace: str) -> None:
        super().__init__(release.plane, namespace)
        self.release = release

    def pod(self, name: str, claim: str, node: str = "") -> Object:
        """Make a pod that uses a claim; the scheduler chooses its node, or must choose `node`."""
        is_block = self.api.get("PersistentVolumeClaim", self.namespace, claim)["spec"].get(
            "volumeMode"
        )
        container: Object = {"name": "user", "image": "none.example.org/none"}
        if is_block == "Block":
            container["volumeDevices"] = [{"name": "v", "devicePath": "/dev/v"}]
        else:
            container["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
        spec: Object = {
            "containers": [container],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
            "terminationGracePeriodSeconds": 0,
        }
        if node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        meta = {"name": name, "namespace": self.namespace}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        return self.api.create(pod)

    def use(self, claim: str, node: str = "") -> tuple[Node, Object]:
        """Have the scheduler place a pod with the claim; return its node and volume, bound."""
        self.pod(f"uses-{claim}", claim, node)
        volume = self.bound(claim)
        return self.release.node_of(volume["spec"]["csi"]["volumeHandle"]), volume

    def clear(self) -> None:
        """Delete what is in the namespace, and wait until it is gone.

        Without kubelets nobody else ends pods, so they are taken away.
        """
        everything = ("pods,persistentvolumeclaims,volumesnapshots", "--all", "--force")
        where = (f"--namespace={self.namespace}", "--timeout=120s", "--grace-period=0")
        self.plane.kubectl("delete", *everything, *where)

    def end_use(self, claim: str) -> None:
        """Take the pod away, as its owner would."""
        self.plane.kubectl(
            "delete", "pod", f"uses-{claim}", f"--namespace={self.namespace}", "--force"
        )

    @contextlib.contextmanager
    def mounted(self, claim: str, node: str = "") -> Iterator[Path]:
        """The claim mounted where its pod is; the pod and the mount go at the end."""
        where, volume = self.use(claim, node)
        try:
            yield where.calls.mount(volume)
        finally:
            where.calls.unmount(volume)
            self.end_use(claim)


@contextlib.contextmanager
def user(release: Release, namespace: str) -> Iterator[User]:
    """A user, whose namespace is empty at the end, and so are the pools for who comes next."""
    made = User(release, namespace)
    release.plane.make_namespace(namespace)
    yield made
    made.clear()

    def left() -> list[str]:
        return [*release.objects_left(), *release.left()]

    poll(lambda: not left(), timeout_s=PATIENCE_S, what=f"nothing left, and not {left()}")
    # Its controller looks again after five seconds, for which nobody has to wait.
    release.plane.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
