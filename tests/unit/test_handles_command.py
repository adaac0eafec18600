"""`shorthorn handle`: what a shell script sees."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shorthorn.commands.handle import app

runner = CliRunner()
MAKE = ["make", "--image", "golden", "--source-type", "download"]


def test_a_parsed_image_handle_is_json():
    handle = (
        "bi://backing?backingImageDataSourceType=download&backingImage=golden&url=http%3A%2F%2Fh"
    )
    result = runner.invoke(app, ["parse", handle])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "type": "bi",
        "backingImage": "golden",
        "sourceType": "download",
        "checksum": "",
        "parameters": {"url": "http://h"},
        "warnings": [],
    }


def test_a_parsed_snapshot_handle_is_json():
    result = runner.invoke(app, ["parse", "snap://vol/before"])
    assert json.loads(result.stdout) == {
        "type": "snap",
        "volume": "vol",
        "snapshot": "before",
        "warnings": [],
    }


def test_warnings_are_part_of_the_json_and_no_failure():
    handle = "bi://b?backingImage=a&backingImageDataSourceType=export-form-volume"
    result = runner.invoke(app, ["parse", handle])
    assert result.exit_code == 0
    assert "did you mean export-from-volume?" in json.loads(result.stdout)["warnings"][0]


@pytest.mark.parametrize("handle", ["", "bak://v/b", "bi://b?x=1", "bi://a b", "x\udcff", "a\nb"])
def test_a_handle_that_names_nothing_is_refused_on_one_line(handle):
    result = runner.invoke(app, ["parse", handle])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("shorthorn: snapshotHandle: ")


def test_a_made_handle_is_escaped_and_parses_to_its_parts():
    url = "https://h/a b.qcow2?x=1&y=2#z+".replace(" ", "%20")
    made = runner.invoke(app, [*MAKE, "--url", url, "--param", "k=v=w"])
    assert made.exit_code == 0
    parsed = json.loads(runner.invoke(app, ["parse", made.stdout.strip()]).stdout)
    assert parsed["parameters"] == {"url": url, "k": "v=w"}
    assert parsed["warnings"] == [
        "'k' is no parameter of 'download'; it is kept, and matches only an image that was made"
        " with it"
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--checksum", "12"], "backingImageChecksum: "),
        (["--param", "k=v"], "url: required"),
        (["--param", "novalue"], "KEY=VALUE"),
        (["--export-type", "RAW", "--url", "http://h"], "neither raw nor qcow2"),
        (["--source-type", "export-form-volume"], "none of download"),
    ],
)
def test_a_handle_that_could_not_work_is_not_made(options, says):
    result = runner.invoke(app, [*MAKE, *options])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert says in result.stderr


def test_a_snapshot_handle_is_made_or_refused():
    assert runner.invoke(app, ["make-snap", "vol", "s"]).stdout == "snap://vol/s\n"
    refused = runner.invoke(app, ["make-snap", "a/b", "s"])
    assert refused.exit_code == 1
    assert "must not be empty nor contain '/'" in refused.stderr


def test_the_examples_of_the_docs_print_what_they_say():
    docs = (Path(__file__).parents[2] / "docs/handles.md").read_text()
    console = docs.partition("```console\n")[2].partition("```")[0]
    examples = [example.partition("\n") for example in console.split("$ shorthorn handle ")[1:]]
    assert len(examples) == 3
    for command, _, printed in examples:
        assert runner.invoke(app, shlex.split(command)).stdout == printed


@pytest.mark.parametrize("command", ["parse", "make", "make-snap"])
def test_help_teaches_by_example(command):
    shown = runner.invoke(app, [command, "--help"]).stdout
    assert f"shorthorn handle {command}" in shown
