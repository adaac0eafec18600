"""`shorthorn image`: what is asked of the command line, and how things are printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from shorthorn.cli import app
from shorthorn.commands.image import endpoint, making, printing
from shorthorn.commands.image.options import Place, find_place
from shorthorn.commands.image.printing import ListOutput, Output
from shorthorn.commands.image.progress import metered
from shorthorn.commands.image.tending import said_of_users
from shorthorn.domain import manifests
from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.models import BackingImage, BackingImageSpec, Meta
from shorthorn.web.views.users import Users

SHA = "ab" * 64
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
OBJECT: dict[str, Any] = {
    "apiVersion": "longhorn.io/v1beta2",
    "kind": "BackingImage",
    "metadata": {"name": "golden", "managedFields": [1]},
    "spec": {"sourceType": "download"},
}
COMMANDS = (
    *("ls", "show", "create", "export", "upload"),
    *("download", "verify", "retry", "rm", "handle"),
)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["image", *arguments], terminal_width=200)
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of the machine's own is ever asked."""
    for name in ("KUBECONFIG", "SHORTHORN_SERVER", "SHORTHORN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHORTHORN_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_examples(command: str) -> None:
    code, said = invoke(command, "--help")
    assert code == 0
    assert f"shorthorn image {command}" in said.split("Options", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("create", "aa"), "either --url or --from-image", id="no source"),
        pytest.param(
            ("create", "aa", "--url", "http://h/x", "--from-image", "b"), "either", id="two sources"
        ),
        pytest.param(
            ("create", "aa", "--url", "http://h/x", "--checksum", "ab"), "128", id="checksum"
        ),
        pytest.param(("create", "a..b", "--url", "http://h/x"), "between dots", id="name"),
        pytest.param(("create", "aa", "--url", "http://h x/"), "%20", id="url"),
        pytest.param(("export", "aa"), "either --volume or --claim", id="no volume"),
        pytest.param(("export", "aa", "--claim", "a/b/c"), "NAMESPACE/NAME", id="claim"),
        pytest.param(("export", "aa", "--volume", "v", "--format", "vmdk"), "qcow2", id="format"),
        pytest.param(("create", "aa", "--url", "http://h/x", "--copies", "0"), "copies", id="copy"),
        pytest.param(("download", "aa", "--as", "vmdk"), "artifact", id="form"),
        pytest.param(("rm",), "NAME", id="nothing to remove"),
        pytest.param(("ls", "-o", "table"), "wide", id="output"),
    ],
)
def test_wrong_usage_ends_with_two_and_says_what_is_right(
    arguments: tuple[str, ...], said: str
) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert said in output


@pytest.mark.parametrize("command", ["ls", "show aa", "verify aa", "rm aa --yes", "handle aa"])
def test_without_a_kubeconfig_the_user_is_told_what_to_give(command: str) -> None:
    code, said = invoke(*command.split())
    assert code == 1
    assert "give --kubeconfig or --data-dir" in said


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    named = {"name": "a"}
    clusters = [{**named, "cluster": {"server": "https://127.0.0.1:9"}}]
    users = [{**named, "user": {"token": "secret"}}]
    contexts = [{**named, "context": {"cluster": "a", "user": "a"}}]
    parts = {"clusters": clusters, "users": users, "contexts": contexts}
    config.write_text(json.dumps({"kind": "Config", "current-context": "a", **parts}))
    code, said = invoke("ls", "--kubeconfig", str(config))
    assert code == 1
    assert "no connection to https://127.0.0.1:9; is it running there?" in said


def test_what_is_said_on_the_command_line_comes_before_the_environment(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.touch()
    env = {"KUBECONFIG": f"/none:{second}", "SHORTHORN_DATA_DIR": "/data", "HOME": "/home/x"}
    assert find_place(Path("/k"), Path("/d"), "ns", env) == Place(Path("/k"), "ns")
    assert find_place(None, Path("/d"), "ns", env).kubeconfig == Path("/d/kubeconfig")
    assert find_place(None, None, "ns", env).kubeconfig == second
    del env["KUBECONFIG"]
    assert find_place(None, None, "ns", env).kubeconfig == Path("/data/kubeconfig")


def test_an_object_leaves_out_what_was_not_asked_for() -> None:
    made = making.image_object("golden", source_type="download", parameters={"url": "http://h/x"})
    assert made["spec"] == {
        "sourceType": "download",
        "minNumberOfCopies": 1,
        "sourceParameters": {"url": "http://h/x"},
    }
    assert making.read_checksum(f" {SHA.upper()}\n") == SHA
    loud = making.image_object("golden", source_type="download", parameters={"url": "HTTP://h/X"})
    assert loud["spec"]["sourceParameters"] == {"url": "http://h/X"}


def test_objects_are_printed_as_kubectl_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_objects([OBJECT], Output.NAME)
    assert capsys.readouterr().out == "backingimage.longhorn.io/golden\n"
    printing.print_objects([OBJECT], ListOutput.JSON, as_list=True)
    listed = json.loads(capsys.readouterr().out)
    assert (listed["kind"], listed["items"][0]["metadata"]) == ("List", {"name": "golden"})
    printing.print_objects([OBJECT], Output.YAML)
    assert yaml.safe_load(capsys.readouterr().out)["spec"] == OBJECT["spec"]


def test_columns_are_aligned_and_nothing_moves_the_cursor() -> None:
    lines = printing.table(("NAME", "STATE"), [("golden", "ready"), ("\x1b[2J", "")])
    assert lines == ["NAME     STATE", "golden   ready", "\ufffd[2J     -"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "-", id="unknown"),
        pytest.param(0, "0B", id="none"),
        pytest.param(1023, "1023B", id="bytes"),
        pytest.param(1536, "1.5KiB", id="fraction"),
        pytest.param(2 << 30, "2GiB", id="whole"),
        pytest.param(1 << 60, "1024PiB", id="largest unit"),
    ],
)
def test_sizes_are_for_people(value: int | None, text: str) -> None:
    assert printing.size(value) == text


@pytest.mark.parametrize(
    ("ago", "text"),
    [(timedelta(seconds=5), "5s"), (timedelta(minutes=90), "90m"), (timedelta(days=9), "9d")],
)
def test_ages_are_those_of_kubectl(ago: timedelta, text: str) -> None:
    assert printing.age(NOW - ago, NOW) == text


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with metered("golden", total=4096) as meter:
        meter.moved(0)
        meter.moved(2048)
        meter.say("connection\nlost")
        meter.moved(4096)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "golden: 0B of 4KiB (0 %)" in printed.err
    assert "golden: 4KiB of 4KiB (100 %)" in printed.err
    assert "connection\ufffdlost" in printed.err


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with metered("golden", total=1, quiet=True) as meter:
        meter.moved(1)
        meter.say("no")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        pytest.param("http://shorthorn.example.org", "in clear", id="clear"),
        pytest.param("http://10.0.0.1:80", "in clear", id="clear address"),
        pytest.param("ftp://h", "no URL", id="scheme"),
        pytest.param("127.0.0.1:8080", "no URL", id="no scheme"),
        pytest.param("https://me:pw@h", "name no user", id="user"),
        pytest.param("http://[::1", "server", id="broken"),
        pytest.param("http://h:x", "server", id="port"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused(url: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        endpoint.check_url(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/", "http://[::1]:1", "http://localhost:1", "https://h/shorthorn"]
)
def test_a_server_on_this_host_or_behind_tls_is_used(url: str) -> None:
    assert endpoint.check_url(url) == url.rstrip("/")


def test_a_deletion_says_what_it_means_to_whom() -> None:
    users = Users((), 3, ["c1"], ["c1"], ["ns/p"], ["copy"], ["PersistentVolumes"])
    said = "\n".join(said_of_users("golden", users))
    for part in ("3 volumes made from it will stay", "(copy)", "VolumeSnapshotContent c1", "ns/p"):
        assert part in said
    assert "you may not list PersistentVolumes" in said
    nobody = Users((), 0, [], [], [], [], [])
    assert said_of_users("golden", nobody) == ["golden: nobody uses it"]


def test_manifests_of_an_image_belong_together() -> None:
    image = BackingImage(Meta("golden"), BackingImageSpec("upload"))
    handle = manifests.handle_of(image)
    assert handle == "bi://backing?backingImageDataSourceType=upload&backingImage=golden"
    names = manifests.Names("disk", "vms", "")
    content = manifests.content(handle, names, driver="driver.longhorn.io")
    snapshot = manifests.snapshot(names)
    claim = manifests.claim(names, snapshot="disk", size_bytes=3 << 30, volume_mode="Block")
    assert content["spec"]["volumeSnapshotRef"] == {"name": "disk", "namespace": "vms"}
    assert content["spec"]["deletionPolicy"] == "Retain"
    assert snapshot["spec"]["source"] == {"volumeSnapshotContentName": "disk"}
    assert claim["spec"]["dataSource"]["name"] == "disk"
    assert claim["spec"]["volumeMode"] == "Block"
    assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
    assert manifests.quantity((1 << 20) + 1) == "2Mi"
    assert manifests.handle_of(BackingImage(Meta("golden"), BackingImageSpec("other"))) is None


def test_a_shell_can_be_taught_to_complete() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "--install-completion" in result.output


def test_completion_is_silent_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    env = {"_SHORTHORN_COMPLETE": "complete_bash", "COMP_WORDS": "shorthorn image show g"}
    result = CliRunner().invoke(app, [], env={**env, "COMP_CWORD": "3"}, prog_name="shorthorn")
    assert result.stdout.strip() == ""
    assert capsys.readouterr() == ("", "")
