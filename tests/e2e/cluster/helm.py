"""helm against a test cluster, as its administrator runs it; and what must outlive what it does.

Owns: helm's command line. Must never: render without a cluster (`tests.e2e.chart`). Called by
tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml
from tests.e2e.chart import CHART, find_helm
from tests.e2e.cluster.control_plane import ControlPlane

NAME = "shorthorn"
_HELM_S = 120.0
#: Everything that is needed to use the data again, and what says where it is.
_INDEX = (
    "customresourcedefinitions",
    "namespaces",
    "secrets",
    "persistentvolumes",
    "persistentvolumeclaims",
    "volumesnapshots.snapshot.storage.k8s.io",
    "volumesnapshotcontents.snapshot.storage.k8s.io",
    "backingimages.longhorn.io",
    "imagecopies.shorthorn.io",
    "volumes.shorthorn.io",
    "snapshots.shorthorn.io",
    "pools.shorthorn.io",
)
#: helm's own record of a release.
_RECORD = "helm.sh/release.v1"


class Helm:
    """helm, and one namespace that it installs into."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._namespace = namespace

    def install(self, values: Mapping[str, Any], *options: str) -> str:
        return self._run("install", NAME, values, *options)

    def upgrade(self, values: Mapping[str, Any], *options: str) -> str:
        return self._run("upgrade", NAME, values, *options)

    def rollback(self) -> str:
        """Go back to what was there before the last upgrade."""
        return self._run("rollback", NAME, None)

    def uninstall(self) -> str:
        return self._run("uninstall", NAME, None)

    def refusal(
        self, values: Mapping[str, Any], *options: str, verb: str = "install", name: str = NAME
    ) -> str:
        """Return what helm says when it cannot do what it is told, which it must not."""
        ran = self._try(verb, name, values, *options)
        assert ran.returncode != 0, f"helm {verb} did it:\n{ran.stdout}"
        return ran.stderr

    def _run(self, *words: Any) -> str:
        ran = self._try(*words)
        assert ran.returncode == 0, f"helm {words[0]}: {ran.stderr}"
        return ran.stdout

    def _try(
        self, verb: str, name: str, values: Mapping[str, Any] | None, *options: str
    ) -> subprocess.CompletedProcess[str]:
        helm = find_helm()
        assert helm is not None, "run scripts/e2e-tools helm"
        argv = [str(helm), verb, name, f"--namespace={self._namespace}", *options]
        if values is not None:
            argv += [str(CHART), "--values=-"]
        home = {"HOME": str(self._plane.directory), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            argv,
            input=yaml.safe_dump(dict(values or {})),
            env={**home, "KUBECONFIG": str(self._plane.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=_HELM_S,
            check=False,
        )


def index_of_data(plane: ControlPlane) -> dict[tuple[str, str, str], Any]:
    """Return all objects that data is found by: identity and content, but not status."""
    words = ("get", ",".join(_INDEX), "--all-namespaces", "--output=json")
    return {
        (d["kind"], d["metadata"].get("namespace", ""), d["metadata"]["name"]): (
            d["metadata"]["uid"],
            d.get("spec"),
            d.get("data"),
        )
        for d in json.loads(plane.kubectl(*words))["items"]
        if d.get("type") != _RECORD
    }
