"""The Helm chart, rendered in every way that it is promised to work.

Owns: where helm is found, the value sets, and what they render to. Must never: talk to a cluster.
Used by the tests of the chart and by whatever installs it into a real control plane.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/shorthorn"
CRDS = ROOT / "src/shorthorn/kube/crds"
#: Our own kinds; the directory also has stand-ins for the CSI project's, which no cluster gets.
OWN_CRDS = sorted([*CRDS.glob("longhorn.io_*.yaml"), *CRDS.glob("shorthorn.io_*.yaml")])
KUBE_VERSION = "1.36.0"
"""Compared with the chart's kubeVersion; a helm that was built by `go build` names 1.20 itself."""


@dataclass(frozen=True)
class ValueSet:
    """One way to install the chart."""

    name: str
    values: Mapping[str, Any]
    namespace: str = "longhorn-system"
    release: str = "shorthorn"


VALUE_SETS = (
    ValueSet("defaults", {}),
    ValueSet("with-snapshot-controller", {"snapshotController": {"enabled": True}}),
    ValueSet(
        "own-names",
        {
            "driverName": "images.example.org",
            "storageClass": {"name": "fast", "default": True, "mountOptions": ["noatime"]},
            "snapshotClass": {"name": "golden", "default": True, "deletionPolicy": "Retain"},
        },
        namespace="images",
        release="golden",
    ),
    ValueSet("one-replica", {"controller": {"replicas": 1}}),
    ValueSet(
        "node-groups",
        {
            "node": {"poolSize": "100G", "nodeTags": ["any"], "extraArgs": ["--verbose"]},
            "nodeGroups": [
                {
                    "name": "nvme",
                    "nodeSelector": {"disk": "nvme"},
                    "nodeTags": ["fast", "nvme"],
                    "diskTags": ["ssd"],
                    "dataDir": "/mnt/nvme/shorthorn",
                },
                {"name": "rest", "nodeSelector": {"disk": "hdd"}, "tolerations": []},
            ],
        },
    ),
    ValueSet(
        "everything",
        {
            "imagePullSecrets": [{"name": "registry"}],
            "kubeletDir": "/var/snap/microk8s/common/var/lib/kubelet",
            "peer": {"ipv6": True, "port": 9751},
            "networkPolicy": {"enabled": True},
            "csiDriver": {"seLinuxMount": True},
            "controller": {
                "nodeSelector": {"role": "infra"},
                "tolerations": [{"key": "infra", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "podAnnotations": {"example.org/a": "b"},
                "extraArgs": ["--verbose"],
            },
            "node": {"podAnnotations": {"example.org/a": "b"}, "affinity": {"nodeAffinity": {}}},
            "snapshotController": {
                "enabled": True,
                "imagePullSecrets": [{"name": "registry"}],
                "nodeSelector": {"role": "infra"},
                "tolerations": [{"key": "infra", "operator": "Exists"}],
            },
        },
    ),
    ValueSet(
        "least",
        {
            "crds": {"install": False},
            "protection": {"enabled": False},
            "storageClass": {"create": False},
            "snapshotClass": {"create": False},
        },
    ),
)


def find_helm() -> Path | None:
    """Return the helm to use: $HELM, the one that `make e2e` builds, or the machine's."""
    named = os.environ.get("HELM")
    built = ROOT / ".cache/e2e/bin/helm"
    found = named or (built if built.is_file() else shutil.which("helm"))
    return Path(found) if found else None


def render(helm: Path, values: ValueSet, *, scratch: Path) -> list[dict[str, Any]]:
    """Return every document that the chart renders to, in the order of installation.

    Includes the CustomResourceDefinitions of the snapshot controller, where it is enabled. Raises:
    CalledProcessError: with helm's message as its stderr.
    """
    words = ["template", values.release, os.fspath(CHART), "--include-crds"]
    text = _run(helm, values, words, scratch)
    return [document for document in yaml.safe_load_all(text) if document]


def lint(helm: Path, values: ValueSet, *, scratch: Path) -> str:
    """Return what `helm lint --strict` says. Raises: CalledProcessError: it complains."""
    return _run(helm, values, ["lint", "--strict", os.fspath(CHART)], scratch)


def _run(helm: Path, values: ValueSet, words: Sequence[str], scratch: Path) -> str:
    file = scratch / f"{values.name}.yaml"
    file.write_text(yaml.safe_dump(dict(values.values)))
    argv = [os.fspath(helm), *words, "--kube-version", KUBE_VERSION]
    argv += ["--namespace", values.namespace, "--values", os.fspath(file)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return done.stdout
