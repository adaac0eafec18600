"""Labels by which our objects are found.

Owns: their keys and values. Must never: look anything up. A node's agent watches the objects that
carry its node's label and no others, so that a thousand nodes cost the API server a thousand small
watches; an image's copies are listed by the image's label.

Values are object names of at most 63 characters (`names.object_name`), because a label's value
cannot hold every node or image name.
"""

from __future__ import annotations

from typing import Final

from shorthorn.domain.names import object_name

NODE_LABEL: Final = "shorthorn.io/node"
IMAGE_LABEL: Final = "shorthorn.io/image"
CLONE_LABEL: Final = "shorthorn.io/clone"
"""On a Snapshot that exists only until the volume of that name is cloned from it."""


def node_labels(node_id: str) -> dict[str, str]:
    """Return the labels of a Pool, Volume or Snapshot on a node."""
    return {NODE_LABEL: object_name(node_id)}


def copy_labels(image: str, node_id: str) -> dict[str, str]:
    """Return the labels of an ImageCopy."""
    return {**image_selector(image), **node_labels(node_id)}


def image_selector(image: str) -> dict[str, str]:
    """Return the labels by which an image's copies are listed. Two images with long names may share
    them; `spec.image` tells.
    """
    return {IMAGE_LABEL: object_name(image)}
