"""/api/v1 of a running service, asked whatever its OpenAPI document allows, and what it forbids.

schemathesis makes the requests: the same ones at each run. An answer that the document does not
know, or a server error, fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml
from tests.integration.daemon_process import ServiceProcess, poll, running
from tests.integration.service_api import SYSTEM

pytestmark = [pytest.mark.root, pytest.mark.xfs]

ROOT = Path(__file__).parents[2]
EXAMPLES = 12


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with running(tmp_path_factory.mktemp("openapi") / "data") as made:
        yield made


def sent(service: ServiceProcess, http: httpx2.Client, name: str) -> None:
    """Make an image by an upload."""
    content = bytes(range(256)) * 4096
    meta = {
        "name": name,
        "namespace": SYSTEM,
        "annotations": {"shorthorn.io/upload-length": str(len(content))},
    }
    image = {"apiVersion": "longhorn.io/v1beta2", "kind": "BackingImage", "metadata": meta}
    service.api.create({**image, "spec": {"sourceType": "upload"}})
    path = f"/api/v1/images/{name}/upload"
    poll(lambda: http.head(path).is_success, what="an upload that is awaited")
    headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert http.patch(path, content=content, headers=headers).status_code == 204
    poll(lambda: http.head(f"/api/v1/images/{name}/artifact").is_success, what="a ready image")


def configuration(name: str) -> str:
    """Return schemathesis.toml. 412 is the answer to another version of tus, and to an If-Match
    with other bytes: to checks the one is unknown, and the other no refusal of good data.
    """
    statuses = [400, 401, 403, 404, 405, 406, 409, 412, 415, 422]
    given = f'[parameters]\n"path.name" = "{name}"\n' if name else ""
    accepted = ["2xx", "3xx", 401, 403, 404, 409, 412, 503]
    return (
        f"{given}[checks.negative_data_rejection]\nexpected-statuses = {statuses}\n"
        f"[checks.positive_data_acceptance]\nexpected-statuses = {json.dumps(accepted)}\n"
    )


@pytest.mark.parametrize("name", ["", "golden"])
def test_every_answer_is_in_the_document(
    service: ServiceProcess, tmp_path: Path, name: str
) -> None:
    """With names of any kind, of which hardly one exists; and with one that does."""
    base = (service.data_dir / "web.url").read_text().strip()
    kubeconfig = yaml.safe_load((service.data_dir / "kubeconfig").read_text())
    token = kubeconfig["users"][0]["user"]["token"]
    headers = {"Authorization": f"Bearer {token}"}
    if name:
        with httpx2.Client(base_url=base, headers=headers, trust_env=False, timeout=60) as http:
            sent(service, http, name)
    (tmp_path / "schemathesis.toml").write_text(configuration(name))
    ran = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{base}/api/openapi.json",
            f"--header=Authorization: Bearer {token}",
            "--checks=all",
            "--continue-on-failure",
            f"--max-examples={EXAMPLES}",
            "--generation-deterministic",
            "--phases=examples,coverage,fuzzing",
            "--no-color",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.contract.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
