"""Whether Longhorn itself lives in this cluster.

Owns: how Longhorn is known: by its own kinds, and by BackingImages that carry its marks. Both
systems use kind BackingImage and driver name, and each would remove what it does not know; so
`shorthorn controller` refuses to start beside it. Must never: change anything. Called by `daemon`.

Longhorn's manager cannot run without its kinds, so the kinds tell enough and no right to look at
DaemonSets is needed. A BackingImage that has a finalizer and no status is not taken for Longhorn's:
one of ours looks like that for a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lightkube import AsyncClient

from shorthorn.domain import errors
from shorthorn.kube.client import domain_errors
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import as_mapping
from shorthorn.kube.resources import BACKING_IMAGE

LONGHORNS_KINDS: Final = ("engines.longhorn.io", "replicas.longhorn.io", "settings.longhorn.io")
_COMPONENT_LABEL: Final = ("longhorn.io/component", "backing-image")

_CRD: Any = resource_class(
    "apiextensions.k8s.io/v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    is_namespaced=False,
)


async def find_longhorn(client: AsyncClient) -> Sequence[str]:
    """Return the kinds of Longhorn that are installed; none: it is not.

    Raises: Unavailable: the API server does not answer, or does not let us look.
    """
    api: Any = client
    found = []
    for name in LONGHORNS_KINDS:
        try:
            with domain_errors("CustomResourceDefinition", name):
                await api.get(_CRD, name)
        except errors.NotFound:
            continue
        found.append(name)
    return found


async def find_foreign_images(client: AsyncClient, namespace: str) -> Sequence[str]:
    """Return the names of BackingImages in `namespace` that Longhorn made.

    Raises: NotFound: the kind is not installed. Unavailable.
    """
    api: Any = client
    with domain_errors("BackingImage", "list"):
        listed = api.list(BACKING_IMAGE.resource, namespace=namespace)
        images = [as_mapping(image) async for image in listed]
    return [image["metadata"]["name"] for image in images if is_longhorns(image)]


def is_longhorns(image: Mapping[str, Any]) -> bool:
    """Whether a BackingImage was made, or adopted, by Longhorn's manager."""
    key, value = _COMPONENT_LABEL
    labels = image["metadata"].get("labels") or {}
    return labels.get(key) == value or bool((image.get("status") or {}).get("ownerID"))
