"""Plain kubectl, the machine's and Debian's 1.20, does everything a user of one host needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import yaml
from tests.integration.embedded_api import embedded_api
from tests.integration.kubectl import Kubectl, binaries, require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.kubectl]

DEADLINE_S = 60.0
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: data
  labels: {app: db}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: longhorn
  resources:
    requests:
      storage: 5Gi
"""
IMAGE = """
apiVersion: longhorn.io/v1beta2
kind: BackingImage
metadata:
  name: golden
  namespace: longhorn-system
spec:
  sourceType: download
  sourceParameters:
    url: http://example.com/a.qcow2
"""
SNAPSHOT = """
apiVersion: snapshot.storage.k8s.io/{version}
kind: VolumeSnapshot
metadata:
  name: snap
spec:
  volumeSnapshotClassName: c
  source:
    persistentVolumeClaimName: data
"""


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param(binary, id=f"kubectl-{number}") for number, binary in enumerate(binaries())
    ],
)
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Kubectl]:
    """A running server, and a kubectl with the kubeconfig it wrote."""
    binary = require(request.param)
    folder = tmp_path_factory.mktemp("kubectl")
    async with embedded_api(folder) as api:
        (folder / "home").mkdir()
        kubectl = Kubectl(binary, api.kubeconfig, folder / "home")
        version = json.loads((await kubectl.run("version", "-o", "json")).out)
        kubectl.minor = int(version["clientVersion"]["minor"].rstrip("+"))
        yield kubectl


@pytest_asyncio.fixture(loop_scope="module")
async def kubectl(server: Kubectl) -> AsyncIterator[Kubectl]:
    """A kubectl on an empty server."""
    yield server
    await server.run("delete", "pvc,vs,lhbi,cm,events", "--all", "-A", "--wait=false")


async def lines_of(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    """Yield what a kubectl prints, line by line, each within the deadline."""
    assert process.stdout is not None
    while True:
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stdout.readline()
        if not line:
            return
        yield line.decode().rstrip("\n")


async def until_printed(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until a kubectl's log has this text."""
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        while text not in (await process.stderr.readline()).decode():
            assert process.returncode is None


@contextlib.asynccontextmanager
async def running(kubectl: Kubectl, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a kubectl in the background; it is ended with the block."""
    process = await kubectl.start(*arguments)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_apply_creates_then_changes_then_leaves_alone(kubectl: Kubectl):
    both = f"{CLAIM}---{IMAGE}"
    assert await kubectl("apply", "-f", "-", stdin=both) == (
        "persistentvolumeclaim/data created\nbackingimage.longhorn.io/golden created\n"
    )
    assert await kubectl("apply", "-f", "-", stdin=both) == (
        "persistentvolumeclaim/data unchanged\nbackingimage.longhorn.io/golden unchanged\n"
    )
    changed = both.replace("app: db", "app: web").replace(
        "sourceType:", "nodeSelector: [fast]\n  sourceType:"
    )
    assert await kubectl("apply", "-f", "-", stdin=changed) == (
        "persistentvolumeclaim/data configured\nbackingimage.longhorn.io/golden configured\n"
    )
    claim = json.loads(await kubectl("get", "pvc", "data", "-o", "json"))
    assert claim["metadata"]["labels"] == {"app": "web"}
    image = yaml.safe_load(
        await kubectl("get", "lhbi", "golden", "-n", "longhorn-system", "-o", "yaml")
    )
    assert image["spec"]["nodeSelector"] == ["fast"]
    assert await kubectl("apply", "-f", "-", stdin=both)
    image = json.loads(
        await kubectl("get", "lhbi", "golden", "-n", "longhorn-system", "-o", "json")
    )
    assert "nodeSelector" not in image["spec"], "apply removes what the manifest no longer has"


async def test_get_prints_the_columns_users_know(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=f"{CLAIM}---{IMAGE}")
    header, row = (await kubectl("get", "pvc")).splitlines()
    assert header.split()[:4] == ["NAME", "STATUS", "VOLUME", "CAPACITY"]
    assert "ACCESS MODES" in header
    assert row.split()[:2] == ["data", "Pending"]
    assert re.search(r"\d+s$", row)
    header, row = (await kubectl("get", "pvc", "-o", "wide")).splitlines()
    assert header.split()[-1] == "VOLUMEMODE"
    assert row.split()[-1] == "Filesystem"
    header, row = (await kubectl("get", "lhbi", "-A")).splitlines()
    assert header.split() == [
        "NAMESPACE",
        "NAME",
        "UUID",
        "SOURCETYPE",
        "SIZE",
        "VIRTUALSIZE",
        "AGE",
    ]
    assert row.split()[:3] == ["longhorn-system", "golden", "download"]
    assert await kubectl("get", "pvc", "-o", "name") == "persistentvolumeclaim/data\n"
    columns = "NAME:.metadata.name,CLASS:.spec.storageClassName"
    printed = await kubectl("get", "pvc", "-o", f"custom-columns={columns}")
    assert printed.split() == ["NAME", "CLASS", "data", "longhorn"]
    printed = await kubectl("get", "pvc", "data", "-o", "jsonpath={.status.phase}")
    assert printed == "Pending"


async def test_get_selects_and_sorts(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=CLAIM)
    other = CLAIM.replace("name: data", "name: other").replace("app: db", "app: web")
    await kubectl("apply", "-f", "-", stdin=other)
    assert "other" not in await kubectl("get", "pvc", "-l", "app in (db)")
    assert "data" not in await kubectl("get", "pvc", "--field-selector", "metadata.name=other")
    rows = (await kubectl("get", "pvc", "--sort-by=.metadata.labels.app")).splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["data", "other"]
    rows = (await kubectl("get", "pvc", "--chunk-size=1", "--no-headers")).splitlines()
    assert [row.split()[0] for row in rows] == ["data", "other"]


async def test_get_watch_prints_changes_as_they_come(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=CLAIM)
    async with running(kubectl, "get", "pvc", "-w", "--no-headers") as process:
        lines = lines_of(process)
        assert (await anext(lines)).split()[:2] == ["data", "Pending"]
        other = CLAIM.replace("name: data", "name: other")
        await kubectl("apply", "-f", "-", stdin=other)
        assert (await anext(lines)).split()[:2] == ["other", "Pending"]
        await kubectl("delete", "pvc", "other")
        assert (await anext(lines)).split()[0] == "other"


async def test_wait_ends_when_the_condition_comes_true(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=IMAGE)
    image = ("lhbi/golden", "-n", "longhorn-system")
    timeout = f"--timeout={DEADLINE_S:.0f}s"
    async with running(kubectl, "wait", *image, "--for=condition=Ready", timeout) as waiting:
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "Complete",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        raw = json.loads(await kubectl("get", *image, "-o", "json"))
        raw["status"] = {"conditions": [condition]}
        await replace_status(kubectl, raw)
        async with asyncio.timeout(DEADLINE_S):
            out, _ = await waiting.communicate()
        assert (waiting.returncode, out.decode()) == (
            0,
            "backingimage.longhorn.io/golden condition met\n",
        )
    async with running(kubectl, "wait", *image, "--for=delete", timeout, "-v=6") as waiting:
        await until_printed(waiting, "watch=true")
        await kubectl("delete", *image)
        async with asyncio.timeout(DEADLINE_S):
            await waiting.communicate()
        assert waiting.returncode == 0


async def replace_status(kubectl: Kubectl, obj: dict[str, object]) -> None:
    """Write a status as a controller would: old kubectls have no --subresource."""
    path = "/apis/longhorn.io/v1beta2/namespaces/longhorn-system/backingimages/golden/status"
    await kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(obj))


async def test_describe_shows_the_object_and_its_events(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=f"{CLAIM}---{IMAGE}")
    claim = json.loads(await kubectl("get", "pvc", "data", "-o", "json"))
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "data.1", "namespace": "default"},
        "involvedObject": {
            "kind": "PersistentVolumeClaim",
            "namespace": "default",
            "name": "data",
            "uid": claim["metadata"]["uid"],
            "apiVersion": "v1",
        },
        "reason": "ProvisioningFailed",
        "message": "no pool has room",
        "type": "Warning",
        "count": 3,
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2099-01-01T00:00:00Z",
        "source": {"component": "test"},
    }
    await kubectl("create", "-f", "-", stdin=json.dumps(event))
    described = await kubectl("describe", "pvc", "data")
    assert re.search(r"Status: +Pending", described)
    assert re.search(r"Warning +ProvisioningFailed .* no pool has room", described)
    described = await kubectl("describe", "lhbi", "golden", "-n", "longhorn-system")
    assert re.search(r"Source Type: +download", described)
    listed = await kubectl("get", "events")
    assert "persistentvolumeclaim/data" in listed
    assert "no pool has room" in listed


async def test_all_three_patches_work_where_they_should(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=f"{CLAIM}---{IMAGE}")
    patches = {
        "strategic": '{"metadata":{"labels":{"p1":"x"}}}',
        "merge": '{"metadata":{"labels":{"p2":"x"}}}',
        "json": '[{"op":"add","path":"/metadata/labels/p3","value":"x"}]',
    }
    for kind, patch in patches.items():
        printed = await kubectl("patch", "pvc", "data", f"--type={kind}", "-p", patch)
        assert printed == "persistentvolumeclaim/data patched\n"
    claim = json.loads(await kubectl("get", "pvc", "data", "-o", "json"))
    assert claim["metadata"]["labels"] == {"app": "db", "p1": "x", "p2": "x", "p3": "x"}
    image = ("lhbi", "golden", "-n", "longhorn-system")
    await kubectl("patch", *image, "--type=merge", "-p", '{"spec":{"nodeSelector":["fast"]}}')
    complaint = await kubectl.refused("patch", *image, "-p", "{}")
    assert "accepted media types include: application/json-patch+json" in complaint


async def test_label_and_annotate_change_metadata(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=CLAIM)
    await kubectl("label", "pvc", "data", "tier=gold")
    await kubectl("label", "pvc", "data", "tier=silver", "--overwrite")
    await kubectl("label", "pvc", "data", "app-")
    await kubectl("annotate", "pvc", "data", "note=hello world")
    metadata = json.loads(await kubectl("get", "pvc", "data", "-o", "json"))["metadata"]
    assert metadata["labels"] == {"tier": "silver"}
    assert metadata["annotations"]["note"] == "hello world"


async def test_edit_opens_and_stores_the_object(kubectl: Kubectl, tmp_path: Path):
    await kubectl("apply", "-f", "-", stdin=IMAGE)
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/sourceType:/nodeSelector: [fast]\\n  &/' \"$1\"\n")
    editor.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *kubectl.command,
        *("edit", "lhbi", "golden", "-n", "longhorn-system"),
        env={**kubectl.environment, "KUBE_EDITOR": str(editor)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert out.decode() == "backingimage.longhorn.io/golden edited\n"


async def test_create_delete_and_delete_all(kubectl: Kubectl):
    await kubectl("create", "-f", "-", stdin=CLAIM)
    complaint = await kubectl.refused("create", "-f", "-", stdin=CLAIM)
    assert 'persistentvolumeclaims "data" already exists' in complaint
    printed = await create_generated(kubectl, "configmap", "settings", "--from-literal=a=b")
    assert printed == "configmap/settings created\n"
    assert await kubectl("delete", "pvc", "data") == 'persistentvolumeclaim "data" deleted\n'
    complaint = await kubectl.refused("get", "pvc", "data")
    assert complaint == ('Error from server (NotFound): persistentvolumeclaims "data" not found\n')
    await kubectl("apply", "-f", "-", stdin=CLAIM)
    await kubectl("apply", "-f", "-", stdin=CLAIM.replace("name: data", "name: other"))
    assert len((await kubectl("delete", "pvc", "--all")).splitlines()) == 2
    await kubectl("delete", "cm", "settings", "--ignore-not-found", "--cascade=foreground")
    assert await kubectl("delete", "cm", "settings", "--ignore-not-found") == ""


async def create_generated(kubectl: Kubectl, *arguments: str) -> str:
    """Run `kubectl create KIND`; where it would send protobuf, go the way the server tells."""
    ran = await kubectl.run("create", *arguments)
    if ran.code == 0:
        return ran.out
    assert "--dry-run=client -o yaml | kubectl apply -f -" in ran.err
    manifest = await kubectl("create", *arguments, "--dry-run=client", "-o", "yaml")
    return await kubectl("apply", "-f", "-", stdin=manifest)


async def test_delete_waits_for_finalizers(kubectl: Kubectl):
    held = CLAIM.replace("labels:", "finalizers: [example.com/hold]\n  labels:")
    await kubectl("apply", "-f", "-", stdin=held)
    async with running(kubectl, "delete", "pvc", "data") as deleting:
        lines = lines_of(deleting)
        assert await anext(lines) == 'persistentvolumeclaim "data" deleted'
        assert "Terminating" in await kubectl("get", "pvc", "data")
        assert deleting.returncode is None
        await kubectl(
            "patch", "pvc", "data", "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
        )
        async with asyncio.timeout(DEADLINE_S):
            assert await deleting.wait() == 0


async def test_namespaces_come_and_go_with_what_is_in_them(kubectl: Kubectl):
    await create_generated(kubectl, "namespace", "lab")
    await kubectl("apply", "-n", "lab", "-f", "-", stdin=CLAIM)
    assert await kubectl("delete", "namespace", "lab") == 'namespace "lab" deleted\n'
    complaint = await kubectl.refused("apply", "-n", "lab", "-f", "-", stdin=CLAIM)
    assert 'namespaces "lab" not found' in complaint


async def test_unknown_fields_are_refused_in_kubectls_own_words(kubectl: Kubectl):
    broken = IMAGE + "volumeSnapshotRef:\n  name: x\n"
    complaint = await kubectl.refused("apply", "-f", "-", stdin=broken)
    assert 'unknown field "volumeSnapshotRef"' in complaint
    assert "strict decoding error" in complaint


async def test_invalid_values_are_named(kubectl: Kubectl):
    broken = IMAGE.replace("download", "export-form-volume")
    complaint = await kubectl.refused("apply", "-f", "-", stdin=broken)
    assert complaint.startswith('The BackingImage "golden" is invalid: \n* spec.sourceType: ')
    assert '"export-from-volume"' in complaint


async def test_v1beta1_snapshots_are_accepted_with_a_warning(kubectl: Kubectl):
    applied = await kubectl.run("apply", "-f", "-", stdin=SNAPSHOT.format(version="v1beta1"))
    assert applied.code == 0, applied
    assert "Warning: snapshot.storage.k8s.io/v1beta1 VolumeSnapshot is deprecated" in applied.err
    stored = json.loads(await kubectl("get", "volumesnapshot", "snap", "-o", "json"))
    assert stored["apiVersion"] == "snapshot.storage.k8s.io/v1"
    printed = await kubectl("apply", "-f", "-", stdin=SNAPSHOT.format(version="v1"))
    assert "volumesnapshot.snapshot.storage.k8s.io/snap" in printed


async def test_server_side_apply_is_refused_with_the_way_out(kubectl: Kubectl):
    complaint = await kubectl.refused("apply", "--server-side", "-f", "-", stdin=CLAIM)
    assert "does not do server-side apply; use client-side apply" in complaint


async def test_api_resources_lists_everything_without_complaint(kubectl: Kubectl):
    printed = await kubectl("api-resources")
    for name in ("persistentvolumeclaims", "volumesnapshots", "backingimages", "storageclasses"):
        assert f"\n{name} " in f"\n{printed}"
    assert "v1beta2" in await kubectl("api-versions")


async def test_diff_and_server_dry_run_change_nothing(kubectl: Kubectl):
    await kubectl("apply", "-f", "-", stdin=CLAIM)
    changed = CLAIM.replace("app: db", "app: web")
    assert await kubectl("diff", "-f", "-", stdin=CLAIM) == ""
    differing = await kubectl.run("diff", "-f", "-", stdin=changed)
    assert differing.code == 1, differing
    assert "+    app: web" in differing.out
    printed = await kubectl("apply", "--dry-run=server", "-f", "-", stdin=changed)
    assert printed == "persistentvolumeclaim/data configured (server dry run)\n"
    claim = json.loads(await kubectl("get", "pvc", "data", "-o", "json"))
    assert claim["metadata"]["labels"] == {"app": "db"}


async def test_explain_describes_our_fields(kubectl: Kubectl):
    explained = await kubectl.run("explain", "backingimages.spec.sourceParameters")
    if kubectl.minor < 27:
        assert "couldn't find resource for" in explained.err
    else:
        assert explained.code == 0, explained
        assert "url; or volume-name and export-type" in explained.out


async def test_storage_classes_show_the_default(kubectl: Kubectl):
    manifest = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "longhorn",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "driver.longhorn.io",
    }
    await kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    try:
        assert "longhorn (default)" in await kubectl("get", "sc")
        assert re.search(r"Provisioner: +driver.longhorn.io", await kubectl("describe", "sc"))
        await kubectl(
            "create", "-f", "-", stdin=CLAIM.replace("  storageClassName: longhorn\n", "")
        )
        claim = json.loads(await kubectl("get", "pvc", "data", "-o", "json"))
        assert claim["spec"]["storageClassName"] == "longhorn"
    finally:
        await kubectl("delete", "sc", "longhorn")
