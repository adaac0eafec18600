"""`shorthorn mount`, `umount` and `path`, as their users call them."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.daemon_process import ROOT, loops_below, mounts_of, poll
from tests.integration.service_api import is_bound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.daemon_process import ServiceProcess
    from tests.integration.service_api import Namespace

pytestmark = [pytest.mark.root, pytest.mark.xfs]

CLAIM = "PersistentVolumeClaim"
PUBLISHED = "shorthorn.io/published"


class User:
    """Somebody at a shell, with directories of his own; what he leaves mounted is unmounted."""

    def __init__(self, service: ServiceProcess, own: Namespace) -> None:
        self._service = service
        self._own = own
        self._used: list[str] = []

    def directory(self, name: str) -> Path:
        return self._service.data_dir.parent / f"{self._own.name}-{name}"

    def does(self, command: str, *arguments: str | Path) -> str:
        """Run a command that must succeed; return what it prints."""
        ran = self._run(command, *arguments)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
        return ran.stdout.strip()

    def is_refused(self, command: str, *arguments: str | Path) -> str:
        """Run a command that must be refused in one line; return that."""
        ran = self._run(command, *arguments)
        *_, last = ran.stderr.strip().splitlines()
        assert ran.returncode == 1, ran
        assert last.startswith("shorthorn: "), ran.stderr
        assert "Traceback" not in ran.stderr
        return last

    def _run(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        if command == "mount":
            self._used += [str(argument) for argument in arguments if isinstance(argument, Path)]
        ran = self._service.run(command, *map(str, arguments))
        if command == "path" and ran.returncode == 0:
            self._used.append(ran.stdout.strip())
        return ran

    def tidy_up(self) -> None:
        for target in dict.fromkeys(self._used):
            if os.path.ismount(target):
                self._service.run("umount", target)


@pytest.fixture
def user(service: ServiceProcess, own: Namespace) -> Iterator[User]:
    made = User(service, own)
    try:
        yield made
    finally:
        made.tidy_up()
    assert mounts_of(service.data_dir) == [str(service.pool)]
    # A loop device goes when the kernel has let go of it.
    pool_file = [str(service.data_dir / "pool.xfs")]
    poll(lambda: list(loops_below(service.data_dir).values()) == pool_file, what="no loop devices")


def mount_of(target: Path) -> tuple[str, list[str]]:
    """Return the type and the options of what is mounted at `target`."""
    found = subprocess.run(
        ["findmnt", "-no", "FSTYPE,OPTIONS", target], capture_output=True, check=True, text=True
    )
    fs_type, options = found.stdout.split()
    return fs_type, options.split(",")


@pytest.mark.parametrize(
    ("fs_type", "size"),
    [
        pytest.param("ext4", "64Mi", id="ext4"),
        pytest.param("xfs", "300Mi", id="xfs"),
        pytest.param("btrfs", "256Mi", id="btrfs"),
    ],
)
def test_files_written_into_a_claim_are_there_again(
    own: Namespace, user: User, fs_type: str, size: str
) -> None:
    cls = own.storage_class("fs", parameters={"fsType": fs_type}, mountOptions=["nodiratime"])
    own.claim("a", size, storage_class=cls)
    target = user.directory("files")
    user.does("mount", f"{own.name}/a", target)
    found, options = mount_of(target)
    assert (found, "nodiratime" in options) == (fs_type, True)
    (target / "note").write_text("kept")
    published = own.api.get(CLAIM, own.name, "a")["metadata"]["annotations"][PUBLISHED]
    assert published == str(target)
    user.does("umount", target)
    assert list(target.iterdir()) == []
    assert PUBLISHED not in own.api.get(CLAIM, own.name, "a")["metadata"]["annotations"]
    user.does("mount", f"{own.name}/a", target)
    assert (target / "note").read_text() == "kept"


def test_a_read_only_mount_refuses_writes(own: Namespace, user: User) -> None:
    own.claim("a")
    target = user.directory("ro")
    user.does("mount", "--read-only", f"{own.name}/a", target)
    with pytest.raises(OSError, match="Read-only"):
        (target / "note").write_text("no")


def test_mounting_again_changes_nothing(own: Namespace, user: User) -> None:
    own.claim("a")
    first, second = user.directory("first"), user.directory("second")
    user.does("mount", f"{own.name}/a", first)
    user.does("mount", f"{own.name}/a", first)
    user.does("mount", f"{own.name}/a", second)
    (first / "note").write_text("shared")
    assert (second / "note").read_text() == "shared"
    assert "read-only" in user.is_refused("mount", "--read-only", f"{own.name}/a", first)
    user.does("umount", first)
    assert (second / "note").read_text() == "shared"
    user.does("umount", second)


def test_a_claim_for_one_pod_is_mounted_once(own: Namespace, user: User) -> None:
    own.claim("a", modes=("ReadWriteOncePod",))
    user.does("mount", f"{own.name}/a", user.directory("first"))
    refusal = user.is_refused("mount", f"{own.name}/a", user.directory("second"))
    assert str(user.directory("first")) in refusal
    assert not user.directory("second").exists()
    user.does("umount", user.directory("first"))
    user.does("mount", f"{own.name}/a", user.directory("second"))


def test_a_block_claim_is_a_device_that_keeps_what_is_written(own: Namespace, user: User) -> None:
    own.claim("a", volumeMode="Block")
    device = user.does("path", f"{own.name}/a")
    assert device == user.does("path", f"{own.name}/a")
    with open(device, "r+b", buffering=0) as disk:
        assert disk.seek(0, os.SEEK_END) == 64 << 20
        disk.seek(1 << 20)
        disk.write(b"x" * 4096)
        os.fsync(disk.fileno())
    refusal = user.is_refused("mount", f"{own.name}/a", user.directory("no"))
    assert f"`shorthorn path {own.name}/a` prints its device" in refusal
    user.does("umount", device)
    assert not os.path.exists(device)
    with open(user.does("path", f"{own.name}/a"), "rb") as disk:
        disk.seek(1 << 20)
        assert disk.read(4096) == b"x" * 4096


def test_a_file_system_has_no_path(own: Namespace, user: User) -> None:
    own.claim("a")
    assert f"`shorthorn mount {own.name}/a DIR`" in user.is_refused("path", f"{own.name}/a")


def test_the_first_mount_is_the_first_consumer(own: Namespace, user: User) -> None:
    cls = own.storage_class("wait", volumeBindingMode="WaitForFirstConsumer")
    own.claim("a", storage_class=cls)
    own.claim("b", storage_class=cls, volumeMode="Block")
    own.event(CLAIM, "a", "WaitForFirstConsumer")
    user.does("mount", f"{own.name}/a", user.directory("first"))
    assert is_bound(own.api.get(CLAIM, own.name, "a"))
    assert user.does("path", f"{own.name}/b")


def test_what_cannot_be_mounted_is_refused_with_the_reason(own: Namespace, user: User) -> None:
    own.claim("lost", storage_class="missing")
    own.claim("a")
    own.claim("b")
    said = user.is_refused("mount", f"{own.name}/none", user.directory("x"))
    assert "there is no claim" in said
    assert "kubectl get pvc" in said
    own.event(CLAIM, "lost", "ProvisioningFailed")
    said = user.is_refused("mount", f"{own.name}/lost", user.directory("x"), "--timeout", "1")
    assert 'storageclass.storage.k8s.io "missing" not found' in said
    assert "no claim is mounted" in user.is_refused("umount", user.directory("x"))
    for name in ("../../etc", "a/b/c"):
        assert "is no claim" in user.is_refused("mount", name, user.directory("x"))
    user.does("mount", f"{own.name}/a", user.directory("a"))
    said = user.is_refused("mount", f"{own.name}/b", user.directory("a"))
    assert "something else is mounted there" in said
    published = own.api.get(CLAIM, own.name, "b")["metadata"]["annotations"]
    assert PUBLISHED not in published
    user.does("umount", user.directory("a"))


def test_a_mount_in_use_is_not_taken_away(own: Namespace, user: User) -> None:
    own.claim("a")
    target = user.directory("busy")
    user.does("mount", f"{own.name}/a", target)
    with (target / "open").open("w"):
        assert str(target) in user.is_refused("umount", target)
        assert (target / "open").exists()
    user.does("umount", target)


def test_a_relative_path_and_a_link_mean_the_directory_behind_them(
    own: Namespace, user: User
) -> None:
    own.claim("a")
    target, link = user.directory("real"), user.directory("link")
    target.mkdir()
    link.symlink_to(target)
    try:
        user.does("mount", f"{own.name}/a", os.path.relpath(link / ".." / target.name))
        assert os.path.ismount(target)
        user.does("umount", link)
        assert not os.path.ismount(target)
    finally:
        link.unlink()


def test_a_claim_mounted_from_many_shells_at_once_is_mounted_everywhere(
    own: Namespace, user: User
) -> None:
    own.claim("a")
    targets = [user.directory(f"t{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as shells:
        list(shells.map(lambda target: user.does("mount", f"{own.name}/a", target), targets))
    assert all(os.path.ismount(target) for target in targets)
    annotations = own.api.get(CLAIM, own.name, "a")["metadata"]["annotations"]
    assert annotations[PUBLISHED].split("\n") == sorted(map(str, targets))
    with ThreadPoolExecutor(4) as shells:
        list(shells.map(lambda target: user.does("umount", target), targets))
    assert not any(os.path.ismount(target) for target in targets)


def test_a_mount_that_is_killed_can_be_undone_or_done_again(
    service: ServiceProcess, own: Namespace, user: User
) -> None:
    """Whatever was done is written down before; `umount` knows of it then."""
    own.claim("a")
    own.bound("a")
    target = user.directory("killed")
    for delay_s in (0.35, 0.45, 0.55, 0.65):
        command = service.command("mount", f"{own.name}/a", str(target))
        mounting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            mounting.wait(delay_s)
        except subprocess.TimeoutExpired:
            mounting.kill()
            mounting.wait()
        annotations = own.api.get(CLAIM, own.name, "a")["metadata"]["annotations"]
        if PUBLISHED in annotations:
            user.does("umount", target)
        assert not os.path.ismount(target)
    user.does("mount", f"{own.name}/a", target)


def test_without_a_service_the_user_is_told_to_start_one(
    service: ServiceProcess, tmp_path: Path
) -> None:
    command = service.command("mount", "a", str(tmp_path / "x"))
    command[-1] = str(tmp_path / "data")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert f"shorthorn up --data-dir {tmp_path}/data" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_directory_that_holds_files_can_be_mounted_on_and_keeps_them(
    user: User, own: Namespace
) -> None:
    own.claim("a")
    target = user.directory("full")
    target.mkdir()
    (target / "mine").write_text("kept")
    user.does("mount", f"{own.name}/a", target)
    assert not (target / "mine").exists()
    user.does("umount", target)
    assert (target / "mine").read_text() == "kept"
    own.delete_claim("a")


def test_a_release_while_a_volume_is_in_use_stops_nothing(
    service: ServiceProcess, user: User, own: Namespace
) -> None:
    own.claim("a")
    target = user.directory("used")
    user.does("mount", f"{own.name}/a", target)
    assert str(target) in user.is_refused("down", "--release")
    assert service.process is not None
    assert service.process.poll() is None
    user.does("umount", target)


def test_a_target_that_cannot_be_made_is_said_so(user: User, own: Namespace) -> None:
    own.claim("a")
    assert "cannot be made" in user.is_refused("mount", f"{own.name}/a", Path("/proc/none"))
