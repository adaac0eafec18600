"""What `shorthorn controller` and `shorthorn node` make of their options."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from shorthorn.cli import app
from shorthorn.commands import cluster
from shorthorn.settings import ControllerSettings, NodeSettings

if TYPE_CHECKING:
    from pathlib import Path


class Started(Exception):
    """The program would run now."""

    def __init__(self, program: Any) -> None:
        super().__init__("started")
        self.program = program


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POD_NAMESPACE", "POD_NAME", "POD_IP", "NODE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cluster, "log_to_stderr", lambda level: None)


def settings_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str, **environment: str
) -> Any:
    """Return the settings that a command line gives."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server:"
        " 'http://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}], contexts: [{name: c,"
        " context: {cluster: c, user: u}}]}"
    )

    async def serve(make: Any, ready: Any) -> None:
        program = make()
        await program._stop()
        raise Started(program._settings)

    monkeypatch.setattr(cluster, "serve", serve)
    line = [*arguments, "--csi-socket", str(tmp_path / "csi.sock"), "--kubeconfig", str(kubeconfig)]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, Started), result.output
    return result.exception.program


def test_defaults_of_the_controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: ControllerSettings = settings_of(monkeypatch, tmp_path, "controller")
    assert (settings.namespace, settings.driver_name) == ("longhorn-system", "driver.longhorn.io")
    assert (settings.leader_elect, settings.lease_name) == (True, "shorthorn-controller")
    assert (settings.http_listen, settings.identity) == ("", "")


def test_a_pod_tells_the_controller_who_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings: ControllerSettings = settings_of(
        *(monkeypatch, tmp_path, "controller", "--no-leader-elect", "--http-listen", ":8080"),
        POD_NAMESPACE="storage",
        POD_NAME="controller-1",
    )
    assert (settings.namespace, settings.identity) == ("storage", "controller-1")
    assert (settings.leader_elect, settings.http_listen) == (False, ":8080")


def test_a_pod_tells_a_node_who_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: NodeSettings = settings_of(
        *(monkeypatch, tmp_path, "node", "--peer-listen", ":9750", "--pool-size", "1G"),
        NODE_NAME="node-a",
        POD_IP="fd00::1",
        SHORTHORN_NODE_TAGS="rack-1, big",
        SHORTHORN_DISK_TAGS="nvme",
    )
    assert settings.node_id == "node-a"
    assert settings.peer_address == "[fd00::1]:9750"
    assert settings.node_tags == ("big", "rack-1")
    assert settings.disk_tags == ("nvme",)
    assert settings.pool_size_bytes == 1 << 30


def test_tags_may_be_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: NodeSettings = settings_of(
        *(monkeypatch, tmp_path, "node", "--node-id", "n"),
        *("--node-tag", "b", "--node-tag", "a", "--node-tag", "a", "--disk-tag", "x,y"),
    )
    assert settings.node_tags == ("a", "b")
    assert settings.disk_tags == ("x", "y")
    assert settings.peer_address == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("controller --http-listen 8080", "--http-listen: '8080' is not HOST:PORT"),
        ("node --node-id n --peer-listen x", "--peer-listen: 'x' is not HOST:PORT"),
        ("node --node-id n --peer-listen :1", "--peer-address is needed"),
        ("node --node-id n --pool-size big", "--pool-size: 'big' is not a size"),
        (f"node --node-id {'n' * 193}", "--node-id must have 1 to 192 bytes"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(line: str, said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*line.split(), "--csi-socket", str(tmp_path / "s")])
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.count("\n") == 1


def test_without_credentials_it_says_what_to_give(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    line = ["controller", "--csi-socket", str(tmp_path / "s"), "--kubeconfig", str(missing)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1
    assert f"shorthorn: kubeconfig: {missing} cannot be used" in result.output


def test_only_root_owns_a_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(
        app, ["node", "--node-id", "n", "--csi-socket", str(tmp_path / "s")]
    )
    assert (result.exit_code, "run it as root" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [("controller", ("shorthorn.standalone", "aiohttp")), ("node", ("shorthorn.standalone",))],
)
def test_a_program_loads_nothing_of_another(program: str, unwanted: tuple[str, ...]) -> None:
    """A node's peers are served by aiohttp."""
    code = (
        f"import sys, shorthorn.daemon.{program};"
        f"print([m for m in sys.modules if m.startswith({unwanted!r})])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert ran.stdout.strip() == "[]"
