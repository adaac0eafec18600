"""Kubernetes resources as dictionaries, for lightkube.

Owns: the classes by which lightkube addresses a resource. lightkube's own `create_*_resource`
registers each for the whole process and refuses a second one of the same kind, its typed classes
included; these register nothing. Must never: do I/O.
"""

from __future__ import annotations

import functools
from typing import Any

from lightkube.core.resource import ApiInfo, ResourceDef
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericGlobalStatus,
    GenericNamespacedResource,
    GenericNamespacedStatus,
)

_VERBS = [
    "delete",
    "deletecollection",
    "get",
    "global_list",
    "global_watch",
    "list",
    "patch",
    "post",
    "put",
    "watch",
]


@functools.cache
def resource_class(api_version: str, kind: str, plural: str, *, is_namespaced: bool) -> Any:
    """Return the class of a resource, with `.Status` for its status subresource.

    `api_version` is `v1` or `group/version`.
    """
    group, _, version = api_version.rpartition("/")
    definition = ResourceDef(group, version, kind)
    info = ApiInfo(resource=definition, plural=plural, verbs=_VERBS)
    status_info = ApiInfo(
        resource=definition,
        parent=definition,
        plural=plural,
        verbs=["get", "patch", "put"],
        action="status",
    )
    base = GenericNamespacedResource if is_namespaced else GenericGlobalResource
    status_base = GenericNamespacedStatus if is_namespaced else GenericGlobalStatus
    status = type(f"{kind}Status", (status_base,), {"_api_info": status_info})
    return type(kind, (base,), {"_api_info": info, "Status": status})
