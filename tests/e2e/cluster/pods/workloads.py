"""Pods of users: ordinary ones, not root, that read and write their claims.

Owns the pods of one namespace and what is run in them. Must never: mount anything, or look at a
volume but through a pod. Called by tests.
"""

from __future__ import annotations

from typing import Any

from tests.e2e.cluster.pods.installation import BUSYBOX
from tests.e2e.cluster.pods.kubelets import is_ready
from tests.e2e.cluster.users import Tenant
from tests.integration.service_api import Object

USER, GROUP, FS_GROUP = 1001, 1002, 2001
#: Where a pod finds its volume.
DIRECTORY, DEVICE = "/v", "/dev/v"
#: Ends when it is asked to, as a shell that is process 1 otherwise does not.
_WAIT = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
#: Adds a line ten times a second, each on the disk before the next; goes on where it was.
COUNTING = f"""
trap 'exit 0' TERM
touch {DIRECTORY}/count
i=$(wc -l < {DIRECTORY}/count)
while :; do i=$((i + 1)); echo $i >> {DIRECTORY}/count; sync -d {DIRECTORY}/count; sleep 0.1; done
"""
_START_S = 90.0


class PodUser(Tenant):
    """Somebody whose pods use claims."""

    def pod_spec(self, volume: Object, script: str = _WAIT, *, is_block: bool = False) -> Object:
        """Return what a pod of ours is: one container that runs a script with one volume."""
        uses = {"volumeDevices": [{"name": "v", "devicePath": DEVICE}]}
        if not is_block:
            uses = {"volumeMounts": [{"name": "v", "mountPath": DIRECTORY}]}
        return {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": GROUP,
                "fsGroup": FS_GROUP,
            },
            "containers": [
                {
                    "name": "user",
                    "image": BUSYBOX,
                    "command": ["sh", "-c", script],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    **uses,
                }
            ],
            "volumes": [{"name": "v", **volume}],
            "terminationGracePeriodSeconds": 5,
        }

    def create(self, name: str, claim: str, script: str = _WAIT, *, node: str = "") -> None:
        """Make a pod with a claim."""
        mode = self.api.get("PersistentVolumeClaim", self.namespace, claim)["spec"]["volumeMode"]
        volume = {"persistentVolumeClaim": {"claimName": claim}}
        spec = self.pod_spec(volume, script, is_block=mode == "Block")
        if node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        self._create(name, spec)

    def start(self, name: str, claim: str, script: str = _WAIT, *, node: str = "") -> Object:
        """Make a pod with a claim, and return it once it is ready."""
        self.create(name, claim, script, node=node)
        return self.ready_pod(name)

    def start_of(self, name: str, spec: Object) -> Object:
        """Make a pod of any kind, and return it once it is ready."""
        self._create(name, spec)
        return self.ready_pod(name)

    def _create(self, name: str, spec: Object) -> None:
        meta = {"name": name, "namespace": self.namespace}
        self.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    def ready_pod(self, name: str) -> Object:
        """Return a pod once it is ready."""
        found = self.api.wait("Pod", self.namespace, name, is_ready, timeout_s=_START_S)
        assert found is not None
        return found

    def run(self, pod: str, script: str) -> str:
        """Run a script in a pod; return what it prints."""
        where = (f"--namespace={self.namespace}", pod)
        return self.plane.kubectl("exec", *where, "--", "sh", "-euc", script)

    def counted(self, pod: str) -> int:
        """Return how far a pod that runs `COUNTING` is; every line must be there once."""
        lines = self.run(pod, f"cat {DIRECTORY}/count").split()
        assert lines == [str(i + 1) for i in range(len(lines))]
        return len(lines)

    def end(self, name: str) -> None:
        """Delete a pod; return when its kubelet has said that it is gone, volumes unmounted."""
        self.api.delete("Pod", self.namespace, name)
        self.api.wait_gone("Pod", self.namespace, name)

    def remove(self) -> None:
        """Delete all that there is; the namespace goes later, in its own time."""
        own = f"--namespace={self.namespace}"
        for kinds in ("statefulsets,pods", "volumesnapshots,persistentvolumeclaims"):
            # Pods first: what they use waits for them, and their namespace then asks again slowly.
            self.plane.kubectl("delete", kinds, "--all", "--wait=false", own)
        self.plane.kubectl("delete", "namespace", self.namespace, "--wait=false")


def identity(pod: Object) -> tuple[Any, ...]:
    """Return what changes if a pod or its container is another one."""
    (container,) = pod["status"]["containerStatuses"]
    return pod["metadata"]["uid"], container["containerID"], container["restartCount"]
