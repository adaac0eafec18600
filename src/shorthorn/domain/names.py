"""Object names as pure functions of the names that callers give.

Owns: what a Kubernetes object may be called, and the one rule by which a CSI name (up to 128 bytes,
any characters) becomes the name of an object and of a directory. Must never: look anything up.
Create and delete share one key because of it: same name, same id.
"""

from __future__ import annotations

import hashlib
import re

NAME_BYTES_MAX = 63
"""Longest name given to an object: a DNS label, so that it may also be a label's value."""

OBJECT_NAME_LENGTH_MAX = 253
"""Longest name of any Kubernetes object."""

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_FORM = re.compile(_LABEL)
SUBDOMAIN_FORM = re.compile(rf"{_LABEL}(\.{_LABEL})*")
"""An object's name but for its length: RFC 1123 subdomain, written as Kubernetes' messages do."""

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")
_HASH_CHARS = 8


def is_object_name(text: str) -> bool:
    """Whether a Kubernetes object can be called so, and a URL's path may hold it as it is."""
    return len(text) <= OBJECT_NAME_LENGTH_MAX and SUBDOMAIN_FORM.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Whether it is a DNS label: what a namespace can be called."""
    return len(text) <= NAME_BYTES_MAX and _LABEL_FORM.fullmatch(text) is not None


def problem_of_name(text: str) -> str:
    """Return in words why no object can be called so; empty where one can."""
    if is_object_name(text):
        return ""
    if len(text) > OBJECT_NAME_LENGTH_MAX:
        return f"a name has at most {OBJECT_NAME_LENGTH_MAX} characters, this one has {len(text)}"
    if not text or not set(text) <= _LETTERS:
        return "use lower-case letters, digits, '-' and '.'"
    return "it begins and ends with a letter or digit, and so does each part between dots"


def object_name(csi_name: str) -> str:
    """Return `csi_name` itself where it is a DNS label of at most 63 characters, else a shortened,
    hashed form.

    The names that external-provisioner and external-snapshotter make (`pvc-<uid>`,
    `snapshot-<uid>`) stay as they are. Other names keep a readable start, followed by eight
    hexadecimal digits of the SHA-512 of the whole name, so two different names never meet by
    shortening alone.
    """
    if is_label(csi_name):
        return csi_name
    readable = re.sub(r"[^a-z0-9]+", "-", csi_name.lower()).strip("-")
    digest = hashlib.sha512(csi_name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
    start = readable[: NAME_BYTES_MAX - _HASH_CHARS - 1].rstrip("-") or "x"
    return f"{start}-{digest}"


def clone_source_name(volume_id: str) -> str:
    """Return the name of the Snapshot from which volume `volume_id` is cloned over the network."""
    return object_name(f"clone-{volume_id}")


def copy_name(image: str, pool_uuid: str) -> str:
    """Return the name of the ImageCopy of `image` on pool `pool_uuid`: one per image and pool."""
    return object_name(f"{image}-{pool_uuid[:8]}")
