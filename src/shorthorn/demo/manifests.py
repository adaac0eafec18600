"""The page's manifests, and what is filled in before they are applied.

Owns: `page/*.yaml`, byte for byte the YAML blocks of the page, and the substitutions that the page
tells its reader to make: URL, checksum, volume handle, names. `own/` holds what the page takes for
granted. Must never: change anything else; a
substitution that does not hit exactly once is a mistake of ours. Pure but for reading package data.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib import resources
from urllib.parse import quote

#: The page's own values, which its reader replaces.
PAGE_URL = "https%3A%2F%2Flonghorn-backing-image.s3-us-west-1.amazonaws.com%2Fparrot.qcow2"
PAGE_CHECKSUM = (
    "bd79ab9e6d45abf4f3f0adf552a868074dd235c4698ce7258d521160e0ad79ff"
    "e555b94e7d4007add6e1a25f4526885eb25c53ce38f7d344dd4925b9f2cb5d3b"
)
PAGE_VOLUME = "vol-export-src"
PAGE_CLAIM = "test-restore-pvc"
PAGE_SNAPSHOT = "test-csi-volume-snapshot-longhorn-backing-image"

SNAPSHOT_CLASS = "1-class.yaml"
SNAPSHOT = "2-snapshot.yaml"
RESTORE_CLAIM = "3-restore-claim.yaml"
EXISTING_CONTENT = "4-existing-content.yaml"
EXISTING_SNAPSHOT = "5-existing-snapshot-v1beta1.yaml"
DOWNLOAD_CONTENT = "6-on-demand-download-misindented.yaml"
EXPORT_CONTENT = "7-on-demand-export-misindented.yaml"
ON_DEMAND_SNAPSHOT = "8-on-demand-snapshot-v1beta1.yaml"
BLOCKS = (
    SNAPSHOT_CLASS,
    SNAPSHOT,
    RESTORE_CLAIM,
    EXISTING_CONTENT,
    EXISTING_SNAPSHOT,
    DOWNLOAD_CONTENT,
    EXPORT_CONTENT,
    ON_DEMAND_SNAPSHOT,
)

_LONG_HEX = re.compile(r"[0-9a-f]{64,}")


@dataclass(frozen=True, slots=True)
class FillIn:
    """One value that replaces one of the page's; `what` is the page's word for it."""

    what: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One of the page's YAML blocks, with what was filled in."""

    name: str
    page: str
    fill_ins: tuple[FillIn, ...] = ()

    @property
    def text(self) -> str:
        """What is applied."""
        text = self.page
        for one in self.fill_ins:
            text = text.replace(one.old, one.new)
        return text

    def fill(self, *fill_ins: FillIn) -> Manifest:
        """Return the manifest with more filled in.

        Raises: ValueError: a value is not there exactly once, or could not be taken back.
        """
        filled = Manifest(self.name, self.page, (*self.fill_ins, *fill_ins))
        text = self.text
        for one in fill_ins:
            if text.count(one.old) != 1:
                raise ValueError(f"{self.name} holds {one.old!r} {text.count(one.old)} times")
            text = text.replace(one.old, one.new)
        if filled.undone() != self.page:
            raise ValueError(f"{self.name}: the page's text cannot be had back")
        return filled

    def undone(self) -> str:
        """Return the text with every substitution taken back: the page's, byte for byte."""
        text = self.text
        for one in reversed(self.fill_ins):
            text = text.replace(one.new, one.old)
        return text

    def differences(self) -> list[str]:
        """Return the changed lines as a diff without context, long checksums shortened."""
        return changed_lines(self.page, self.text)


def read(name: str) -> Manifest:
    """Return one of the page's blocks as it stands there."""
    raw = (resources.files(__package__) / "page" / name).read_bytes()
    return Manifest(name, raw.decode())


def read_own(name: str) -> str:
    """Return one of our own manifests, for what the page takes for granted."""
    return (resources.files(__package__) / "own" / name).read_text()


def changed_lines(before: str, after: str) -> list[str]:
    """Return the lines that differ, each with - or + before it; long checksums are shortened."""
    diff = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    body = [line for line in diff if not line.startswith(("---", "+++", "@@"))]
    return [shorten(line) for line in body]


def shorten(text: str) -> str:
    """Return a text for the eye: long checksums cut."""
    return _LONG_HEX.sub(lambda found: f"{found[0][:12]}…", text)


def url(location: str) -> FillIn:
    """Fill in the URL, escaped as the page escapes its own."""
    return FillIn("URL", PAGE_URL, quote(location, safe=""))


def checksum(sha512: str) -> FillIn:
    """Fill in the checksum: 128 hexadecimal digits."""
    return FillIn("checksum", PAGE_CHECKSUM, sha512)


def volume_handle(handle: str) -> FillIn:
    """Fill in the handle of the volume to export."""
    return FillIn("volume handle", f"volume-name={PAGE_VOLUME}", f"volume-name={handle}")


def claim_name(name: str) -> FillIn:
    """Fill in the name of the restored claim."""
    return FillIn("name", f"name: {PAGE_CLAIM}\n", f"name: {name}\n")


def restored_from(snapshot: str) -> FillIn:
    """Fill in the VolumeSnapshot that a claim is restored from."""
    return FillIn("name", f"name: {PAGE_SNAPSHOT}\n", f"name: {snapshot}\n")
