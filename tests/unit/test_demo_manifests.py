"""The page's manifests: stored byte for byte, and nothing but what the page asks for filled in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from shorthorn.demo import manifests
from shorthorn.demo.manifests import FillIn, Manifest
from shorthorn.domain import handles
from shorthorn.lint import check, mend

PAGE = Path(manifests.__file__).parent / "page"
#: SHA-256 of each YAML block as the page prints it, without the indentation of its list item.
AS_PRINTED = {
    "1-class.yaml": "a8c6256492e507acf2355f2c413b9d0e2e699ebc7c0105909d4ebf14e342fed3",
    "2-snapshot.yaml": "c36e8ca82178dd20849a5406f34e0e8ace2c6a2cd7fb522b0ce8eb61a6bb046f",
    "3-restore-claim.yaml": "0544af32d66990fda5558e7fd50aa6273b2ee80c07e06a2ee32c93097fc9bcb6",
    "4-existing-content.yaml": "c4252c1d212ca0342e4742492d06e08b0ac4abe5516fe107c342522e1e34bc3a",
    "5-existing-snapshot-v1beta1.yaml": (
        "c688b4f146ffc7ba565a1def21df1e0b2b0b0329df723fed965b57dc6481036b"
    ),
    "6-on-demand-download-misindented.yaml": (
        "0bcec7d2a370266a24103e164714efe959d8688faadd3636422633447085a7a1"
    ),
    "7-on-demand-export-misindented.yaml": (
        "c03a92a5c4d659db224ebad5ac1d067a80aa5e88d60738cfa7ccc89716866550"
    ),
    "8-on-demand-snapshot-v1beta1.yaml": (
        "7aab27b3a14a4900962363e98306a2126c8f79e0ad8a8c7c585706e0eb9fc258"
    ),
}
URL = "http://127.0.0.1:8080/a b&c=d/parrot.qcow2"
SHA512 = "ab" * 64
HANDLE = "pvc-0f7cbf55-52a5-4e9c-a0ba-2f6e2d2a4f0b"

EXISTING = (manifests.EXISTING_CONTENT, [manifests.url(URL), manifests.checksum(SHA512)])
DOWNLOAD = (manifests.DOWNLOAD_CONTENT, [manifests.url(URL), manifests.checksum(SHA512)])
EXPORT = (manifests.EXPORT_CONTENT, [manifests.volume_handle(HANDLE)])
CLAIM = (
    manifests.RESTORE_CLAIM,
    [manifests.claim_name("test-other-pvc"), manifests.restored_from("test-other-snapshot")],
)


def test_every_block_is_stored_exactly_as_the_page_prints_it():
    stored = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in PAGE.iterdir()}
    assert stored == AS_PRINTED
    assert set(manifests.BLOCKS) == set(AS_PRINTED)


@pytest.mark.parametrize("name", manifests.BLOCKS)
def test_a_block_without_anything_filled_in_is_the_page_byte_for_byte(name):
    manifest = manifests.read(name)
    assert manifest.text.encode() == (PAGE / name).read_bytes()
    assert manifest.differences() == []


@pytest.mark.parametrize(("name", "fill_ins"), [EXISTING, DOWNLOAD, EXPORT, CLAIM])
def test_taking_the_substitutions_back_gives_the_page_byte_for_byte(name, fill_ins):
    filled = manifests.read(name).fill(*fill_ins)
    assert filled.text != filled.page
    undone = filled.text
    for one in reversed(fill_ins):
        undone = undone.replace(one.new, one.old)
    assert undone.encode() == (PAGE / name).read_bytes()


@pytest.mark.parametrize(("name", "fill_ins"), [EXISTING, DOWNLOAD, EXPORT, CLAIM])
def test_only_lines_with_what_the_page_asks_for_differ(name, fill_ins):
    filled = manifests.read(name).fill(*fill_ins)
    pairs = list(zip(filled.page.splitlines(), filled.text.splitlines(), strict=True))
    changed = [(old, new) for old, new in pairs if old != new]
    assert {one.what for one in fill_ins} <= {"URL", "checksum", "volume handle", "name"}
    assert all(old.strip().startswith(("snapshotHandle:", "name:")) for old, _ in changed)
    assert len(changed) == (2 if name == manifests.RESTORE_CLAIM else 1)
    assert filled.differences() == [
        manifests.shorten(f"{sign}{line}")
        for pair in changed
        for sign, line in zip("-+", pair, strict=True)
    ]


@pytest.mark.parametrize(
    ("filled", "expected"),
    [
        (EXISTING, ("download", SHA512, {"url": URL})),
        (DOWNLOAD, ("download", SHA512, {"url": URL})),
        (EXPORT, ("export-from-volume", "", {"volume-name": HANDLE, "export-type": "qcow2"})),
    ],
)
def test_a_filled_in_handle_says_what_was_filled_in(filled, expected):
    name, fill_ins = filled
    mended = yaml.safe_load(mend(manifests.read(name).fill(*fill_ins).text))
    handle = handles.parse(mended["spec"]["source"]["snapshotHandle"])
    assert isinstance(handle, handles.BackingImageHandle)
    assert handle.backing_image == "test-bi"
    assert (handle.source_type, handle.checksum, dict(handle.parameters)) == expected


def test_a_value_that_the_page_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="0 times"):
        manifests.read(manifests.SNAPSHOT).fill(manifests.url(URL))


def test_a_value_that_stands_there_twice_is_refused():
    with pytest.raises(ValueError, match="2 times"):
        manifests.read(manifests.RESTORE_CLAIM).fill(FillIn("name", "name: test-", "name: x-"))


def test_a_value_that_could_not_be_taken_back_is_refused():
    with pytest.raises(ValueError, match="cannot be had back"):
        Manifest("x", "a: 1\nb: 2\n").fill(FillIn("name", "1", "2"))


def test_long_checksums_are_cut_for_the_eye_only():
    filled = manifests.read(manifests.EXISTING_CONTENT).fill(manifests.checksum(SHA512))
    assert SHA512 in filled.text
    assert not any(SHA512 in line for line in filled.differences())


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_nothing_that_lint_calls_an_error(path):
    assert [finding for finding in check(path.read_text()) if finding.is_error] == []


def test_the_examples_begin_with_what_the_page_begins_with():
    documents = {
        doc["metadata"]["name"]: doc
        for path in EXAMPLES
        for doc in yaml.safe_load_all(path.read_text())
    }
    for name in (manifests.SNAPSHOT_CLASS, manifests.SNAPSHOT, manifests.RESTORE_CLAIM):
        page = yaml.safe_load(manifests.read(name).text)
        assert documents[page["metadata"]["name"]] == page
    assert documents["test-vol"] == yaml.safe_load(manifests.read_own("claim.yaml"))
