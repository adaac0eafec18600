"""The manifests below examples/, as `make up` suggests to apply them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemon_process import ServiceProcess, poll, running

pytestmark = [pytest.mark.root, pytest.mark.kubectl, pytest.mark.slow]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SNAPSHOT = "volumesnapshot/test-csi-volume-snapshot-longhorn-backing-image"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with running(tmp_path_factory.mktemp("examples") / "data") as service:
        yield service


def kubectl(service: ServiceProcess, *arguments: str, stdin: str = "") -> str:
    command = ["kubectl", "--kubeconfig", str(service.data_dir / "kubeconfig"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def apply(service: ServiceProcess, name: str, **filled_in: str) -> None:
    text = (EXAMPLES / name).read_text()
    for old, new in filled_in.items():
        text = text.replace(old, new)
    kubectl(service, "apply", "-f", "-", stdin=text)


def wait(service: ServiceProcess, target: str, path: str, wanted: str) -> None:
    kubectl(service, "wait", f"--for=jsonpath={{{path}}}={wanted}", target, "--timeout=60s")


def test_claim_snapshot_and_restores_follow_from_each_other(service):
    apply(service, "claim.yaml")
    wait(service, "pvc/test-vol", ".status.phase", "Bound")
    apply(service, "snapshot.yaml")
    wait(service, SNAPSHOT, ".status.readyToUse", "true")
    apply(service, "restored-claim.yaml")
    wait(service, "pvc/test-restore-pvc", ".status.phase", "Bound")
    handle = kubectl(service, "get", "pvc/test-vol", "-o=jsonpath={.spec.volumeName}")
    apply(service, "on-demand-export.yaml", VOLUME_HANDLE=handle)
    wait(service, "pvc/from-golden", ".status.phase", "Bound")


@pytest.mark.parametrize(
    ("name", "snapshot", "claim"),
    [
        ("pre-provisioned.yaml", "debian-12", "debian-disk"),
        ("on-demand-download.yaml", "debian-cloud", "debian-cloud-disk"),
    ],
)
def test_a_download_from_the_web_is_accepted_and_begun(service, name, snapshot, claim):
    """Whether it succeeds depends on the machine's network; that it begins does not."""
    images = ("get", "backingimages", "-n=longhorn-system", "-o=name")
    apply(service, name)
    content = "{.status.boundVolumeSnapshotContentName}"
    kubectl(service, "wait", f"--for=jsonpath={content}={snapshot}", f"volumesnapshot/{snapshot}")
    poll(
        lambda: f"backingimage.longhorn.io/{snapshot}" in kubectl(service, *images),
        what=f"backing image {snapshot}",
    )
    assert kubectl(service, "get", f"pvc/{claim}", "-o=jsonpath={.spec.volumeMode}") == "Block"
    kubectl(service, "delete", "--wait=false", "-f", str(EXAMPLES / name))
