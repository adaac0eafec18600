"""The main job as a user runs it: it holds, it can fail, and it leaves nothing behind.

Every test runs the real program on real disks; `--dir` keeps it below pytest's own directory.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemon_process import loops_below, poll, processes_naming

from shorthorn.demo import manifests, workspace

pytestmark = [pytest.mark.root, pytest.mark.kubectl, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
OLD_KUBECTL = ROOT / ".cache/debian-kubectl/usr/bin/kubectl"
STEPS = [
    "service starts",
    "claim test-vol: made",
    "claim test-vol: filled",
    "VolumeSnapshot of the mounted claim",
    "BackingImage, as kubectl",
    "claim test-restore-pvc: restored",
    "a foreign qcow2",
    "BackingImage test-bi: made by hand",
    "pre-provisioned content",
    "BackingImage test-bi goes",
    "on-demand download",
    "on-demand export-from-volume",
    "refused: the page's 6-on-demand",
    "refused: the page's 7-on-demand",
    "refused: a wrong checksum",
    "refused: a parameter",
    "refused: source type export-form-volume",
    "refused: a claim's name",
    "deletion",
    "service stops",
]
SMALL = ["--source-mib", "8", "--source-files", "300"]


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory below which a unix socket's path still fits into its 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for private directories; whatever happens, the kernel lets go of it."""
    with short_directory() as directory:
        yield directory
        left = kernel_leftovers(directory)
        release(directory)
        assert left == []


def demo(place: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shorthorn", "demo", "--dir", place, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate()
    return process.returncode, said


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read the output up to a line that holds `words`."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"it ended before it said {words!r}:\n{said}")


def processes_of(place: Path) -> list[int]:
    return processes_naming(f"{place}/{workspace.PREFIX}")


def mounts_below(place: Path) -> list[str]:
    fields = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [line[4] for line in fields if line[4].startswith(f"{place}/")]


def kernel_leftovers(place: Path) -> list[str]:
    return [*mounts_below(place), *loops_below(place), *map(str, processes_of(place))]


def leftovers(place: Path) -> list[str]:
    return [*kernel_leftovers(place), *map(str, place.iterdir())]


def release(place: Path) -> None:
    """Let nothing of a failed test stay in the kernel."""
    for target in reversed(mounts_below(place)):
        subprocess.run(["umount", target], check=False)
        for loop in loops_below(place):
            subprocess.run(["losetup", "--detach", loop], check=False)


def rows_of(said: str) -> list[tuple[str, str, str]]:
    """Return the table's rows: step, time, bytes."""
    table = re.split(r"^ +The main job *$", said, maxsplit=1, flags=re.MULTILINE)[1]
    return re.findall(r"^ ?\d+ (.+?)  +([\d.]+ s)(.*)$", table, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def whole_job() -> tuple[int, str, list[str]]:
    """Exit status, output and leftovers of the job as `make run` starts it."""
    with short_directory() as directory:
        status, said = finish(demo(directory))
        left = leftovers(directory)
        release(directory)
        return status, said, left


def test_every_comparison_holds_and_nothing_is_left(whole_job):
    status, said, left = whole_job
    assert status == 0, said
    assert left == []
    assert said.rstrip().splitlines()[-1].startswith("All of it held.")
    assert "\x1b" not in said, "no terminal: no escape codes"
    compared = re.search(r"(\d+) trees compared: ([\d,]+) files, ([\d.]+) MiB of content", said)
    assert compared is not None
    assert int(compared[1]) == 5
    assert int(compared[2].replace(",", "")) > 5_000
    assert float(compared[3]) > 100


def test_the_table_has_every_step_with_its_time_and_what_was_moved_and_shared(whole_job):
    rows = rows_of(whole_job[1])
    assert len(rows) == len(STEPS)
    for (title, _, _), expected in zip(rows, STEPS, strict=True):
        assert title.startswith(expected)
    shared = {title for title, _, rest in rows if rest.count("iB") == 2}
    assert len(shared) == 5, "an export, and the claims made from four images, share blocks"
    freed = {title for title, _, rest in rows if "freed" in rest}
    assert any(title.startswith("deletion") for title in freed)


@pytest.mark.parametrize("name", manifests.BLOCKS)
def test_each_of_the_pages_manifests_is_applied_with_its_differences_told(whole_job, name):
    said = whole_job[1]
    assert f"{name}: exactly as on the page" in said or f"{name}: filled in, the rest" in said
    assert f"{name} | kubectl apply -f -" in said or f"kubectl apply -f {name}" in said


@pytest.mark.parametrize(
    "words",
    [
        "✓ the writer's files stand at write ",
        "✓ test-restore-pvc is the snapshot's point in time",
        "✓ test-existing-pvc is the downloaded image",
        "✓ test-existing-pvc is still the downloaded image",
        "✓ test-downloaded-pvc is the exported point in time",
        "✓ test-exported-pvc is test-vol as it is by now",
        "✓ the pool's images, volumes, snapshots and staging are empty",
        "✓ no mount and no loop device is left",
        "file format: qcow2",
        "Warning: snapshot.storage.k8s.io/v1beta1 VolumeSnapshot is deprecated",
        'strict decoding error: unknown field "volumeSnapshotRef"',
        "volumeSnapshotRef stands at the top level; it belongs to spec",
        "checksum mismatch: expected SHA-512 000000000000…",
        "test-bi has a data source that is different from the parameters in the request",
        "type 'export-form-volume' is not supported",
        "a volume handle belongs here: write volume-name=pvc-",
    ],
)
def test_it_says(whole_job, words):
    assert words in whole_job[1]


@pytest.mark.skipif(not OLD_KUBECTL.exists(), reason="Debian's kubectl is not to be had")
def test_it_holds_with_debians_kubectl_too(place):
    status, said = finish(demo(place, *SMALL, "--kubectl", str(OLD_KUBECTL)))
    assert status == 0, said
    assert leftovers(place) == []


KUBECTL_THAT_TOUCHES_A_FILE = """\
#!/bin/bash
# Changes one file of the volume just before its snapshot is asked for.
input=
[[ " $* " != *" apply "* ]] || input=$(cat)
if [[ $input == *"persistentVolumeClaimName: test-vol"* ]]; then
    [[ $* =~ --kubeconfig=([^ ]*)/data/kubeconfig ]]
    printf 'X' | dd of="${BASH_REMATCH[1]}/mounts/test-vol/rarities/random" conv=notrunc 2>/dev/null
fi
exec kubectl "$@" <<<"$input"
"""


def test_one_byte_that_is_not_as_expected_fails_the_job_and_is_named(place, tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL_THAT_TOUCHES_A_FILE)
    kubectl.chmod(0o755)
    status, said = finish(demo(place, *SMALL, "--kubectl", str(kubectl)))
    assert status == 1
    assert "claim test-restore-pvc is not the snapshot's point in time; 2 differences" in said
    assert "rarities/random: content was" in said
    assert "kubectl describe pvc/test-restore-pvc" in said
    assert "the end of the service's log" in said
    assert "claim test-restore-pvc: restored, mounted, compared (failed)" in said
    assert "All of it held" not in said
    assert leftovers(place) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        pytest.param(signal.SIGINT, "[ 6] claim test-restore-pvc", id="ctrl-c while restoring"),
        pytest.param(signal.SIGTERM, "[ 2] claim test-vol", id="terminated while mounting"),
    ],
)
def test_an_interruption_takes_everything_away(place, number, words):
    process = demo(place, *SMALL)
    read_until(process, words)
    process.send_signal(number)
    status, said = finish(process)
    assert status == 128 + number, said
    assert f"Interrupted by {number.name}" in said
    assert leftovers(place) == []


def test_the_next_run_removes_what_a_killed_one_left(place):
    process = demo(place, *SMALL)
    read_until(process, "[ 3] claim test-vol")
    process.kill()
    finish(process)
    wait_until_childless(place)
    assert mounts_below(place), "a killed run cannot clean up"
    process = demo(place, *SMALL)
    said = read_until(process, "private directory:")
    process.send_signal(signal.SIGINT)
    finish(process)
    assert re.search(r"removed .*/shorthorn-demo-\S+, which a killed run had left", said)
    assert leftovers(place) == []


def test_a_failure_is_kept_when_asked_for_and_survives_the_next_run(place):
    status, said = finish(demo(place, "--keep", "--kubectl", "/bin/false"))
    assert status == 1
    assert "kubectl get storageclass ended with 1" in said
    assert kernel_leftovers(place) == []
    (kept,) = place.iterdir()
    assert f"shorthorn up --data-dir {kept}/data" in said
    assert (kept / "shorthorn.log").exists()
    status, _ = finish(demo(place, "--kubectl", "/bin/false"))
    assert list(place.iterdir()) == [kept]


def test_no_room_is_said_before_anything_is_made(place):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
    try:
        status, said = finish(demo(place))
        assert status == 1
        assert "64.0 MiB free, 3.50 GiB are needed; choose another directory with --dir" in said
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)


def wait_until_childless(place: Path) -> None:
    """The kernel ends the service with its parent; its writer and tools go the same way."""
    poll(lambda: not processes_of(place), what="the end of the killed run's children")
