"""The kinds this API server serves, read from CustomResourceDefinition files.

Owns the reading of `apiextensions.k8s.io/v1` YAML: our own kinds and the snapshot kinds come from
the same files that a cluster gets, core and storage kinds from `builtin/` in the same format (group
"" is core). It must not know what any kind means; the few kinds with rules of their own have them
in `admission`. Called once at start by whoever builds an `ApiServer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from shorthorn.standalone.apiserver.schema import Schema, SchemaUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from importlib.resources.abc import Traversable

#: Fields of core kinds that a real API server lets a client select by
#: (pkg/apis/core/v1/conversion.go).
_BUILTIN_FIELDS: Mapping[str, tuple[str, ...]] = {
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "nodes": ("spec.unschedulable",),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "pods": ("spec.nodeName", "status.phase"),
}
#: Groups that a real API server has compiled in; the rest are custom resources.
_CORE_GROUPS = frozenset({"", "storage.k8s.io", "coordination.k8s.io", "events.k8s.io"})


class KindInvalid(Exception):
    """A CustomResourceDefinition file that cannot be served: the server refuses to start."""


@dataclass(frozen=True, slots=True)
class Column:
    """One additional printer column of a version."""

    name: str
    type: str
    json_path: str
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """One served version of a kind; objects of all versions have the same fields."""

    name: str
    openapi: Mapping[str, Any]
    columns: tuple[Column, ...]
    warning: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One resource: its names, versions, schema and what requests it takes."""

    group: str
    kind: str
    list_kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    categories: tuple[str, ...]
    namespaced: bool
    has_status: bool
    storage_version: str
    versions: Mapping[str, Version]
    selectable_fields: frozenset[str]
    schema: Schema

    @property
    def resource(self) -> str:
        """`plural` or `plural.group`: the key of this kind in the store."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_core(self) -> bool:
        """Whether a real API server has this kind compiled in (strategic merge, no generation)."""
        return self.group in _CORE_GROUPS

    @property
    def openapi(self) -> Mapping[str, Any]:
        """The schema of the stored version."""
        return self.versions[self.storage_version].openapi

    def api_version(self, version: str | None = None) -> str:
        """`group/version` as objects carry it; the stored version unless one is named."""
        name = version or self.storage_version
        return f"{self.group}/{name}" if self.group else name


class KindSet:
    """All kinds of a server; at most one per resource and per group and kind."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._by_resource: dict[str, Kind] = {}
        self._by_path: dict[tuple[str, str, str], Kind] = {}
        self._by_type: dict[tuple[str, str], Kind] = {}
        for kind in kinds:
            if kind.resource in self._by_resource or (kind.group, kind.kind) in self._by_type:
                raise KindInvalid(f"{kind.resource} is defined twice")
            self._by_resource[kind.resource] = kind
            self._by_type[kind.group, kind.kind] = kind
            for version in kind.versions:
                self._by_path[kind.group, version, kind.plural] = kind

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_resource.values())

    def find_by_path(self, group: str, version: str, plural: str) -> Kind | None:
        """Return the kind served at that group, version and plural name."""
        return self._by_path.get((group, version, plural))

    def find_by_type(self, api_version: str, kind: str) -> Kind | None:
        """Return the kind an object's apiVersion and kind name (any version of the group)."""
        group, _, _ = api_version.rpartition("/")
        return self._by_type.get((group, kind))

    def find_by_resource(self, resource: str) -> Kind | None:
        """Return the kind stored under `resource` (`plural.group`)."""
        return self._by_resource.get(resource)

    def group_versions(self) -> dict[str, list[str]]:
        """Map each group to its versions, the preferred one first."""
        groups: dict[str, list[str]] = {}
        for kind in self:
            versions = groups.setdefault(kind.group, [])
            preferred_first = sorted(kind.versions, key=lambda v: v != kind.storage_version)
            versions.extend(v for v in preferred_first if v not in versions)
        return groups


def load_default_kinds() -> KindSet:
    """Load every kind that the package ships. Raises: KindInvalid; State: reads files only."""
    crds = resources.files("shorthorn.kube") / "crds"
    builtin = resources.files("shorthorn.standalone.apiserver") / "builtin"
    return KindSet([*load_kinds(builtin), *load_kinds(crds)])


def load_kinds(folder: Traversable) -> list[Kind]:
    """Read every `*.yaml` of `folder` (several documents per file allowed), in name order.

    Raises: KindInvalid: not a CustomResourceDefinition, or a rule that cannot be evaluated.
    """
    kinds: list[Kind] = []
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yaml"):
            continue
        for document in yaml.load_all(file.read_bytes(), Loader=yaml.CSafeLoader):
            if document is None:
                continue
            try:
                kinds.append(parse_kind(document))
            except (KeyError, TypeError, SchemaUnsupported) as exc:
                raise KindInvalid(f"{file.name}: {exc}") from exc
    return kinds


def parse_kind(crd: Mapping[str, Any]) -> Kind:
    """Turn one CustomResourceDefinition into a `Kind`; every schema is compiled.

    Raises: KindInvalid, SchemaUnsupported, KeyError (a member is missing).
    """
    if crd.get("kind") != "CustomResourceDefinition":
        raise KindInvalid(f"{crd.get('kind')} is not a CustomResourceDefinition")
    spec = crd["spec"]
    names = spec["names"]
    served = [version for version in spec["versions"] if version["served"]]
    stored = next(version for version in spec["versions"] if version["storage"])
    if stored not in served:
        raise KindInvalid(f"{names['plural']}: the stored version {stored['name']} is not served")
    group = spec["group"]
    versions = {v["name"]: _parse_version(v, stored, group, names["kind"]) for v in served}
    return Kind(
        group=group,
        kind=names["kind"],
        list_kind=names.get("listKind", names["kind"] + "List"),
        plural=names["plural"],
        singular=names.get("singular", names["kind"].lower()),
        short_names=tuple(names.get("shortNames", ())),
        categories=tuple(names.get("categories", ())),
        namespaced=spec["scope"] == "Namespaced",
        has_status="status" in stored.get("subresources", {}),
        storage_version=stored["name"],
        versions=versions,
        selectable_fields=_selectable_fields(stored, group, names["plural"]),
        schema=Schema.compile(
            versions[stored["name"]].openapi,
            name=names["kind"],
            is_core=group in _CORE_GROUPS,
        ),
    )


def _selectable_fields(stored: Mapping[str, Any], group: str, plural: str) -> frozenset[str]:
    declared = {f["jsonPath"].lstrip(".") for f in stored.get("selectableFields", ())}
    return frozenset(declared) | (
        frozenset(_BUILTIN_FIELDS.get(plural, ())) if not group else set()
    )


def _parse_version(
    version: Mapping[str, Any], stored: Mapping[str, Any], group: str, kind: str
) -> Version:
    schema = version.get("schema") or stored["schema"]
    columns = tuple(
        Column(
            name=column["name"],
            type=column["type"],
            json_path=column["jsonPath"],
            format=column.get("format", ""),
            description=column.get("description", ""),
            priority=column.get("priority", 0),
        )
        for column in version.get("additionalPrinterColumns", ())
    )
    warning = None
    if version.get("deprecated"):
        warning = version.get(
            "deprecationWarning", f"{group}/{version['name']} {kind} is deprecated"
        )
    return Version(version["name"], schema["openAPIV3Schema"], columns, warning)
