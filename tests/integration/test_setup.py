"""scripts/setup as a stranger meets it: silent when ready, plain when it cannot go on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_setup(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that was never set up; what it installs would go below tmp_path."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    for name in ["pyproject.toml", "hatch_build.py", "requirements.lock", "requirements-dev.lock"]:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.root
@pytest.mark.parametrize("mode", ["run", "test", "check"])
def test_a_checkout_that_is_ready_is_left_alone_at_once(mode: str) -> None:
    run_setup(ROOT / "scripts" / "setup", mode)  # whoever started pytest by hand may be behind
    started_s = children_s()
    again = run_setup(ROOT / "scripts" / "setup", mode)
    took_s = children_s() - started_s
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert took_s < 2, "usually 0.02 s; a user waits for this at every make"


def children_s() -> float:
    """The processor's time of all that was run so far: what it takes on a machine that is idle."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.root
def test_without_root_it_says_why_and_what_to_type(checkout: Path) -> None:
    # In a user namespace with no mapping, root is nobody but may still read its own files.
    answer = run_setup("unshare", "--user", checkout / "scripts" / "setup", "run")
    assert answer.returncode == 1
    assert "this needs root" in answer.stderr
    assert "sudo make run" in answer.stderr


@pytest.mark.root
def test_on_another_distribution_it_names_what_is_missing(checkout: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ["bash", "dirname", "id", "mkdir", "flock", "sed"]:
        (bare / tool).symlink_to(shutil.which(tool) or tool)
    answer = run_setup(
        shutil.which("bash") or "bash", checkout / "scripts" / "setup", "run", PATH=str(bare)
    )
    assert answer.returncode == 1
    assert "qemu-utils" in answer.stderr
    assert "no Debian" in answer.stderr


@pytest.mark.parametrize(
    "interpreter",
    [pytest.param("/nonexistent/python3", id="missing"), pytest.param("/bin/false", id="unfit")],
)
def test_an_unfit_python_is_refused_with_the_way_out(checkout: Path, interpreter: str) -> None:
    answer = run_setup(checkout / "scripts" / "setup", "check", PYTHON=interpreter)
    assert answer.returncode == 1
    assert "Python 3.11 or newer is needed" in answer.stderr
    assert "PYTHON=" in answer.stderr
    assert not (checkout / ".venv").exists()


def test_certificates_that_an_interrupted_installation_dropped_are_put_back(checkout: Path) -> None:
    ours, debians, shared = (
        f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n"
        for name in ["ours", "debians", "shared"]
    )
    bundle, kept = checkout / "ca-certificates.crt", checkout / ".cache" / "ca-bundle.kept"
    bundle.write_text(debians + shared)
    kept.parent.mkdir()
    kept.write_text(f"# the company's\n{shared}{ours}".rstrip())
    setup = checkout / "scripts" / "setup"
    script = setup.read_text()
    assert "/etc/ssl/certs/ca-certificates.crt" in script
    setup.write_text(script.replace("/etc/ssl/certs/ca-certificates.crt", str(bundle)))
    answer = run_setup(setup, "check", PYTHON="/nonexistent/python3")
    assert "put certificates back" in answer.stderr
    assert bundle.read_text() == debians + shared + ours
    assert not kept.exists()


def test_an_unknown_mode_shows_the_known_ones(checkout: Path) -> None:
    answer = run_setup(checkout / "scripts" / "setup", "everything")
    assert answer.returncode == 2
    assert "scripts/setup run" in answer.stderr
