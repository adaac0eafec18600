"""`shorthorn mount` refuses directories whose contents nobody wants hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from shorthorn.cli import app


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ("", "is the current directory"),
        (".", "is the current directory"),
        ("file", "is not a directory"),
        ("data", "would hide the service's own files"),
        ("..", "would hide the service's own files"),
    ],
)
def test_a_mount_that_would_hide_something_is_refused(data_dir: Path, directory: str, reason: str):
    result = CliRunner().invoke(app, ["mount", "claim", directory, "--data-dir", str(data_dir)])
    assert result.exit_code == 1
    assert reason in result.output


def test_a_directory_beside_the_data_is_not_refused_for_its_place(data_dir: Path):
    result = CliRunner().invoke(app, ["mount", "claim", "new", "--data-dir", str(data_dir)])
    assert result.exit_code == 1
    assert "no service has run" in result.output
