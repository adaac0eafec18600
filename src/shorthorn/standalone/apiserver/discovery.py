"""Discovery: which groups, versions and resources there are, and the server's version.

Owns the documents below /api, /apis and /version. Pure functions of the kinds. Called by `app`.
Source: meta/v1 APIVersions, APIGroupList, APIResourceList; apimachinery version.Info.
"""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shorthorn.standalone.apiserver.kinds import Kind, KindSet

#: The Kubernetes release whose behaviour is followed; clients compare it with their own.
KUBERNETES_VERSION = "1.33.0"

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def core_versions(address: str) -> dict[str, Any]:
    """Return the document at /api."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(kinds: KindSet) -> dict[str, Any]:
    """Return the document at /apis."""
    groups = [_group(name, versions) for name, versions in kinds.group_versions().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def find_group(kinds: KindSet, name: str) -> dict[str, Any] | None:
    """Return the document at /apis/GROUP."""
    versions = kinds.group_versions().get(name)
    if not name or versions is None:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(name, versions)


def find_resources(kinds: KindSet, group: str, version: str) -> dict[str, Any] | None:
    """Return the document at /api/v1 or /apis/GROUP/VERSION."""
    if version not in kinds.group_versions().get(group, ()):
        return None
    served = [kind for kind in kinds if kind.group == group and version in kind.versions]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": [entry for kind in served for entry in _resource_entries(kind)],
    }


def version_info() -> dict[str, str]:
    """Return the document at /version."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"v{KUBERNETES_VERSION}+shorthorn-{package_version('shorthorn')}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "python",
        "platform": "linux",
    }


def _group(name: str, versions: list[str]) -> dict[str, Any]:
    entries = [{"groupVersion": f"{name}/{v}", "version": v} for v in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def _resource_entries(kind: Kind) -> list[dict[str, Any]]:
    entry: dict[str, Any] = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": _VERBS,
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    entries = [entry]
    if kind.has_status:
        entries.append(
            {
                "name": f"{kind.plural}/status",
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": kind.kind,
                "verbs": ["get", "patch", "update"],
            }
        )
    return entries
