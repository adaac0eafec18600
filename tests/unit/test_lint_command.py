"""`shorthorn lint`: files, output, exit codes."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from shorthorn.commands import lint

MANIFESTS = Path(__file__).parents[2] / "src/shorthorn/demo/page"
BROKEN = MANIFESTS / "6-on-demand-download-misindented.yaml"
SOUND = MANIFESTS / "2-snapshot.yaml"

app = typer.Typer()
app.add_typer(lint.app)
app.command("other")(lambda: None)
runner = CliRunner()


def run(*arguments: str | Path, stdin: str | bytes | None = None):
    return runner.invoke(app, ["lint", *(str(one) for one in arguments)], input=stdin)


def test_a_sound_file_exits_zero():
    result = run(SOUND)
    assert (result.exit_code, result.stdout) == (0, "nothing to say\n")


def test_a_broken_file_is_explained_with_its_place_rule_and_remedy():
    result = run(BROKEN)
    assert result.exit_code == 1
    assert f"{BROKEN}:12:1: error [misplaced-field] volumeSnapshotRef stands at" in result.stdout
    assert "    → set volumeSnapshotRef in below spec" in result.stdout
    assert result.stdout.endswith("1 error, 1 info; 1 can be mended with --fix\n")


def test_findings_are_counted():
    result = run(MANIFESTS / "7-on-demand-export-misindented.yaml")
    assert result.stdout.endswith("6 errors; 6 can be mended with --fix\n")


def test_fix_prints_only_the_mended_manifest_and_exits_zero():
    result = run("--fix", BROKEN)
    assert result.exit_code == 0
    assert "    volumeSnapshotRef:\n        name:" in result.stdout
    assert "deletes-image" in result.stderr
    assert run("-", stdin=result.stdout).exit_code == 0


def test_fix_exits_one_while_errors_remain():
    result = run("--fix", "-", stdin="kind: VolumeSnapshot\napiVersion: v1\n")
    assert result.exit_code == 1
    assert result.stdout == "kind: VolumeSnapshot\napiVersion: v1\n"


def test_several_files_are_fixed_into_one_stream():
    result = run("--fix", SOUND, BROKEN)
    assert result.stdout.count("\n---\n") == 1
    assert run("-", stdin=result.stdout).exit_code == 0


def test_in_place_writes_the_file_and_keeps_its_mode(tmp_path):
    target = tmp_path / "m.yaml"
    target.write_bytes(BROKEN.read_bytes())
    target.chmod(0o640)
    assert run("--fix", "--in-place", target).exit_code == 0
    assert run(target).exit_code == 0
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["m.yaml"]


def test_in_place_follows_a_link_and_leaves_a_sound_file_untouched(tmp_path):
    target, link = tmp_path / "m.yaml", tmp_path / "link.yaml"
    target.write_bytes(SOUND.read_bytes())
    link.symlink_to(target)
    before = target.stat()
    assert run("--fix", "--in-place", link).exit_code == 0
    assert link.is_symlink()
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_cannot_be_written_stays_whole_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "m.yaml"
    target.write_bytes(BROKEN.read_bytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        result = run("--fix", "--in-place", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert result.stderr == f"shorthorn: cannot write {target}: File too large\n"
    assert target.read_bytes() == BROKEN.read_bytes()
    assert os.listdir(tmp_path) == ["m.yaml"]


@pytest.mark.parametrize("arguments", [["--in-place", "x.yaml"], ["--fix", "--in-place", "-"]])
def test_in_place_without_a_file_to_mend_is_a_usage_error(arguments):
    assert run(*arguments, stdin="").exit_code == 2


def test_json_output_is_for_machines():
    result = run("-o", "json", BROKEN)
    found = json.loads(result.stdout)["findings"]
    assert [one["rule"] for one in found] == ["deletes-image", "misplaced-field"]
    assert found[1] == {
        "file": str(BROKEN),
        "line": 12,
        "column": 1,
        "severity": "error",
        "rule": "misplaced-field",
        "message": "volumeSnapshotRef stands at the top level; it belongs to spec",
        "advice": "set volumeSnapshotRef in below spec",
        "mendable": True,
    }


def test_a_file_that_cannot_be_read_is_named_on_one_line(tmp_path):
    result = run(tmp_path / "absent.yaml")
    assert result.exit_code == 1
    assert result.stderr == (
        f"shorthorn: cannot read {tmp_path}/absent.yaml: No such file or directory\n"
    )


def test_a_binary_file_is_refused_on_one_line(tmp_path):
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"QFI\xfb\x00\x00")
    result = run(disk)
    assert result.exit_code == 1
    assert "is not UTF-8 text (byte 3)" in result.stderr


def test_control_characters_of_a_manifest_do_not_reach_the_terminal():
    text = 'apiVersion: "snapshot.storage.k8s.io/v1"\nkind: VolumeSnapshot\n"\\e[2J": 1\n'
    result = run("-", stdin=text)
    assert "\x1b" not in result.stdout
    assert "\ufffd[2J" in result.stdout


def test_help_teaches_by_example():
    shown = run("--help").stdout
    assert "shorthorn lint --fix snapshot.yaml | kubectl apply -f -" in shown
