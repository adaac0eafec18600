"""The documented manifests, byte for byte: sound ones pass, broken ones are mended.

src/shorthorn/demo/page holds every YAML block of the page on VolumeSnapshots and backing images,
in order; the main job applies the same files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shorthorn.lint import Finding, Rule, check, mend

MANIFESTS = Path(__file__).parents[2] / "src/shorthorn/demo/page"
SNAPSHOT = "snapshot.storage.k8s.io/v1"
SHA = (
    "bd79ab9e6d45abf4f3f0adf552a868074dd235c4698ce7258d521160e0ad79ff"
    "e555b94e7d4007add6e1a25f4526885eb25c53ce38f7d344dd4925b9f2cb5d3b"
)
URL = "https%3A%2F%2Flonghorn-backing-image.s3-us-west-1.amazonaws.com%2Fparrot.qcow2"


def read(name: str) -> str:
    return (MANIFESTS / name).read_text()


def errors(text: str) -> list[Finding]:
    return [finding for finding in check(text) if finding.is_error]


def content(handle: str) -> object:
    return {
        "apiVersion": SNAPSHOT,
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": "test-on-demand-backing"},
        "spec": {
            "volumeSnapshotClassName": "longhorn-snapshot-vsc",
            "driver": "driver.longhorn.io",
            "deletionPolicy": "Delete",
            "source": {"snapshotHandle": handle},
            "volumeSnapshotRef": {
                "name": "test-snapshot-on-demand-backing",
                "namespace": "default",
            },
        },
    }


def snapshot(name: str, backing: str) -> object:
    return {
        "apiVersion": SNAPSHOT,
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {
            "volumeSnapshotClassName": "longhorn-snapshot-vsc",
            "source": {"volumeSnapshotContentName": backing},
        },
    }


SOUND = ["1-class.yaml", "2-snapshot.yaml", "3-restore-claim.yaml", "4-existing-content.yaml"]
BROKEN = {
    "5-existing-snapshot-v1beta1.yaml": (
        {Rule.OLD_API_VERSION},
        snapshot("test-snapshot-existing-backing", "test-existing-backing"),
    ),
    "6-on-demand-download-misindented.yaml": (
        {Rule.MISPLACED_FIELD},
        content(
            "bi://backing?backingImageDataSourceType=download&backingImage=test-bi"
            f"&url={URL}&backingImageChecksum={SHA}"
        ),
    ),
    "7-on-demand-export-misindented.yaml": (
        {Rule.MISPLACED_FIELD},
        content(
            "bi://backing?backingImageDataSourceType=export-from-volume&backingImage=test-bi"
            "&volume-name=vol-export-src&export-type=qcow2"
        ),
    ),
    "8-on-demand-snapshot-v1beta1.yaml": (
        {Rule.OLD_API_VERSION},
        snapshot("test-snapshot-on-demand-backing", "test-on-demand-backing"),
    ),
}


def test_every_block_of_the_page_is_tested():
    assert {path.name for path in MANIFESTS.iterdir()} == {*SOUND, *BROKEN}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_manifest_passes_and_is_not_touched(name):
    assert errors(read(name)) == []
    assert mend(read(name)) == read(name)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_explained(name):
    assert {finding.rule for finding in errors(read(name))} == BROKEN[name][0]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_mended_to_its_corrected_form(name):
    mended = mend(read(name))
    assert yaml.safe_load(mended) == BROKEN[name][1]
    assert errors(mended) == []
    assert mend(mended) == mended


@pytest.mark.parametrize("name", BROKEN)
def test_mending_changes_nothing_but_indentation_and_version(name):
    before, after = read(name).splitlines(), mend(read(name)).splitlines()
    assert [line.strip() for line in after] == [
        line.strip().replace("v1beta1", "v1") for line in before
    ]


def test_each_stray_field_is_told_once_at_its_line_and_column():
    found = [
        (f.line, f.column, f.message) for f in errors(read("7-on-demand-export-misindented.yaml"))
    ]
    assert found == [
        (4, 1, "name stands at the top level; it belongs to metadata"),
        (6, 1, "volumeSnapshotClassName stands at the top level; it belongs to spec"),
        (7, 1, "driver stands at the top level; it belongs to spec"),
        (8, 1, "deletionPolicy stands at the top level; it belongs to spec"),
        (9, 1, "source stands at the top level; it belongs to spec"),
        (12, 1, "volumeSnapshotRef stands at the top level; it belongs to spec"),
    ]


def test_the_whole_page_in_one_stream_is_mended_document_by_document():
    stream = "---\n".join(read(name) for name in [*SOUND, *BROKEN])
    mended = mend(stream)
    assert errors(mended) == []
    assert len(list(yaml.safe_load_all(mended))) == len(SOUND) + len(BROKEN)


def test_notes_about_the_page_are_told_but_are_no_errors():
    found = {finding.rule for finding in check(mend(read("7-on-demand-export-misindented.yaml")))}
    assert found == {Rule.DELETES_IMAGE, Rule.PVC_NAME}
