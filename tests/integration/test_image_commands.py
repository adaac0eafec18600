"""`shorthorn image` on a running service: what it lists, shows, makes, asks for and deletes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.fakes.image_server import Behaviour, serve
from tests.integration.daemon_process import ROOT, poll
from tests.integration.service_api import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.daemon_process import ServiceProcess
    from tests.integration.service_api import Namespace

pytestmark = [pytest.mark.root, pytest.mark.xfs]

DISK_MIB = 4


class User:
    """Somebody at a shell whose images all begin with the test's name; they go at its end."""

    def __init__(self, service: ServiceProcess, own: Namespace) -> None:
        self._service = service
        self.own = own

    def name(self, name: str) -> str:
        return f"{self.own.name}-{name}"

    def does(self, command: str, *arguments: str) -> str:
        """Run a command that must succeed; return what it prints."""
        ran = self.run(command, *arguments)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
        return ran.stdout

    def is_refused(self, command: str, *arguments: str, code: int = 1) -> str:
        """Run a command that must be refused; return what it says."""
        ran = self.run(command, *arguments)
        assert (ran.returncode, "Traceback" in ran.stderr) == (code, False), ran
        return ran.stderr

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._service.run("image", command, *arguments)

    def command(self, command: str, *arguments: str) -> list[str]:
        return self._service.command("image", command, *arguments)

    def image(self, name: str) -> dict[str, Any]:
        return self.own.api.get("BackingImage", SYSTEM, self.name(name))

    def tidy_up(self) -> None:
        for obj in self.own.api.list("BackingImage", SYSTEM):
            name = obj["metadata"]["name"]
            if name.startswith(f"{self.own.name}-"):
                self.own.api.delete("BackingImage", SYSTEM, name)
                self.own.api.wait_gone("BackingImage", SYSTEM, name)


@pytest.fixture
def user(service: ServiceProcess, own: Namespace) -> Iterator[User]:
    made = User(service, own)
    try:
        yield made
    finally:
        made.tidy_up()


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    path = tmp_path / "disk.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), f"{DISK_MIB}M"]
    subprocess.run(command, check=True)
    return path.read_bytes()


def test_an_image_is_made_listed_shown_and_deleted(user: User, disk: bytes) -> None:
    golden = user.name("golden")
    with serve(disk) as served:
        said = user.does("create", golden, "--url", served.url, "--wait")
        assert said == f"{golden} created\n{golden} is ready\n"
        again = user.does("create", golden, "--url", served.url, "--wait")
        assert again.startswith(f"{golden} exists already")
        refusal = user.is_refused("create", golden, "--url", f"{served.url}x")
        assert "its sourceParameters is" in refusal
    [header, row] = [
        line for line in user.does("ls").splitlines() if line.startswith(("NAME", golden))
    ]
    assert header.split() == (
        "NAME STATE PROGRESS SIZE VIRTUAL ALLOCATED SHARED SOURCE COPIES AGE".split()  # noqa: SIM905
    )
    assert row.split()[:5] == [golden, "ready", "-", "192KiB", f"{DISK_MIB}MiB"]
    assert row.split()[7:9] == ["download", "1/1"]
    wide = next(x for x in user.does("ls", "-o", "wide").splitlines() if x.startswith(golden))
    assert "qcow2    no" in wide  # none was expected: what came is only hashed
    checksum = user.image("golden")["status"]["checksum"]
    assert f"{checksum} (verified)" not in user.does("show", golden)
    user.does("verify", golden, "--wait")
    shown = user.does("show", golden)
    assert f"{checksum} (verified)" in shown
    assert "Used by:\n  nobody" in shown
    assert f"{golden}: nobody uses it" in user.is_refused("rm", golden, code=2)
    assert user.does("rm", golden, "--yes") == f"{golden} deleted\n"
    assert "not found" in user.is_refused("show", golden)


def test_a_machine_reads_the_objects_themselves(user: User, disk: bytes) -> None:
    golden = user.name("golden")
    with serve(disk) as served:
        made = user.does("create", golden, "--url", served.url, "--wait", "-q", "-o", "json")
    assert json.loads(made) == user.image("golden")
    assert json.loads(user.does("show", golden, "-o", "json")) == user.image("golden")
    assert yaml.safe_load(user.does("show", golden, "-o", "yaml")) == user.image("golden")
    user.own.api.merge("BackingImage", SYSTEM, golden, {"metadata": {"labels": {"team": "ci"}}})
    listed = json.loads(user.does("ls", "-o", "json", "-l", f"team in (ci),name!={golden}"))
    assert [obj["metadata"]["name"] for obj in listed["items"]] == [golden]
    assert user.does("ls", "-o", "name", "-l", "team") == f"backingimage.longhorn.io/{golden}\n"
    assert user.does("ls", "-o", "name", "-l", "team=qa") == ""


def test_a_failure_ends_waiting_with_its_reason(user: User, disk: bytes) -> None:
    with serve(disk, Behaviour(status=404)) as served:
        said = user.is_refused("create", user.name("bad"), "--url", served.url, "--wait")
    assert "answered 404" in said
    with serve(disk) as served:
        arguments = ("--url", served.url, "--wait", "--checksum", "0" * 128)
        assert "checksum" in user.is_refused("create", user.name("other"), *arguments).lower()


def test_a_claim_becomes_an_image_and_its_users_are_named(user: User) -> None:
    golden, own = user.name("golden"), user.own
    own.claim("a", volumeMode="Block")
    own.bound("a")
    user.does("export", golden, "--claim", f"{own.name}/a", "--format", "raw", "--wait")
    spec = user.image("golden")["spec"]
    assert spec["sourceParameters"]["export-type"] == "raw"
    handle = own.volume_of("a")["spec"]["csi"]["volumeHandle"]
    assert spec["sourceParameters"]["volume-name"] == handle
    user.does("export", golden, "--volume", handle, "--format", "raw")
    arguments = ("--kind", "all", "--name", f"{own.name}-disk", "-n", own.name)
    manifests = user.does("handle", golden, *arguments, "--volume-mode", "block")
    content, snapshot, claim = yaml.safe_load_all(manifests)
    for obj in (content, snapshot, claim):
        own.api.create(obj)
    own.bound(f"{own.name}-disk")
    shown = user.does("show", golden)
    assert f"Claim {own.name}/{own.name}-disk" in shown
    assert f"VolumeSnapshotContent {own.name}-disk" in shown
    said = user.is_refused("rm", golden, code=2)
    assert "1 volume made from it will stay as they are" in said
    assert f"VolumeSnapshotContent {own.name}-disk" in said
    user.does("rm", golden, "--yes")
    assert own.bound(f"{own.name}-disk")


def test_a_claim_that_is_not_there_or_not_bound_has_nothing_to_export(user: User) -> None:
    own = user.own
    assert "not found" in user.is_refused("export", user.name("x"), "--claim", f"{own.name}/none")
    own.claim("lost", storage_class="missing")
    said = user.is_refused("export", user.name("x"), "--claim", f"{own.name}/lost")
    assert "not bound" in said


def test_a_handle_names_the_image(user: User, disk: bytes) -> None:
    golden = user.name("golden")
    with serve(disk) as served:
        user.does("create", golden, "--url", served.url, "--wait")
    expected = f"bi://backing?backingImageDataSourceType=download&backingImage={golden}"
    assert user.does("handle", golden) == f"{expected}\n"
    [content] = yaml.safe_load_all(user.does("handle", golden, "--kind", "content"))
    assert content["spec"]["source"]["snapshotHandle"] == expected
    claim = yaml.safe_load(user.does("handle", golden, "--kind", "claim", "--size", "1Gi"))
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    user.is_refused("handle", golden, "--kind", "claim", "--size", "big", code=2)


def test_what_can_be_verified_or_tried_again_is_asked_for_and_nothing_else(
    user: User, disk: bytes
) -> None:
    golden = user.name("golden")
    with serve(disk, Behaviour(status=404), Behaviour()) as served:
        failed = user.is_refused("create", golden, "--url", served.url, "--wait")
        assert "404" in failed
        assert "404" in user.is_refused("verify", golden)
        annotations = user.image("golden")["metadata"].get("annotations") or {}
        assert "shorthorn.io/verify-at" not in annotations
        user.does("retry", golden, "--wait")
        asked = user.image("golden")["metadata"]["annotations"]["shorthorn.io/retry-at"]
        said = user.is_refused("retry", golden)
        assert "is ready, with no copy that failed" in said
        user.does("verify", golden)
        annotations = user.image("golden")["metadata"]["annotations"]
    assert annotations["shorthorn.io/retry-at"] == asked
    assert annotations["shorthorn.io/verify-at"]
    assert "not found" in user.is_refused("verify", user.name("none"))
    assert "not found" in user.is_refused("retry", user.name("none"))


def test_a_watch_shows_what_comes_and_goes(user: User, disk: bytes) -> None:
    golden = user.name("golden")
    watching = subprocess.Popen(
        user.command("ls", "-w"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("NAME")
        with serve(disk) as served:
            user.does("create", golden, "--url", served.url, "--wait")
        user.does("rm", golden, "--yes")
        states = []
        for line in watching.stdout:
            if line.startswith(golden):
                states.append(line.split()[1])
            if states[-1:] == ["gone"]:
                break
        assert "ready" in states
        watching.send_signal(2)
        said = watching.communicate(timeout=60)[1]
        assert watching.returncode == 130
        assert "Traceback" not in said
    finally:
        watching.kill()
        watching.communicate()


@pytest.mark.parametrize(("answer", "remains"), [("n", True), ("y", False)])
def test_on_a_terminal_a_deletion_is_asked_for(
    user: User, disk: bytes, answer: str, remains: bool
) -> None:
    golden = user.name("golden")
    with serve(disk) as served:
        user.does("create", golden, "--url", served.url, "--wait")
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, f"{answer}\n".encode())
        ran = subprocess.run(
            user.command("rm", golden),
            cwd=ROOT,
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert ran.stderr.startswith(f"{golden}: nobody uses it\nDelete it?")
    assert ran.returncode == (1 if remains else 0)
    found = user.own.api.find("BackingImage", SYSTEM, golden)
    assert (found is not None) == remains


def test_names_are_completed_from_the_server(
    user: User, service: ServiceProcess, disk: bytes
) -> None:
    golden = user.name("golden")
    with serve(disk) as served:
        user.does("create", golden, "--url", served.url, "--wait")

    def completed(kubeconfig: Path | str) -> list[str]:
        ran = subprocess.run(
            [str(Path(sys.executable).with_name("shorthorn"))],
            env={
                **os.environ,
                "KUBECONFIG": str(kubeconfig),
                "_SHORTHORN_COMPLETE": "complete_bash",
                "COMP_WORDS": f"shorthorn image show {user.own.name}-g",
                "COMP_CWORD": "3",
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.stderr == ""
        return ran.stdout.split()

    # None are offered where the server takes more than a moment, as on a loaded machine.
    poll(lambda: completed(service.data_dir / "kubeconfig") == [golden], what="it is offered")
    assert completed("/none") == []
