"""The OpenAPI v2 document: just enough for old kubectls to try a dry run.

Owns a protobuf message written by hand. It announces the dryRun parameter of every kind's patch,
which kubectl before 1.27 looks for before `diff` and `--dry-run=server`, and defines no schema,
which it takes as a reason to leave validation to the server. Called by `app`. Source: gnostic
`openapiv2/OpenAPIv2.proto` (the field numbers), kubectl `pkg/util/openapi/dryrun.go`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shorthorn.standalone.apiserver.discovery import KUBERNETES_VERSION

if TYPE_CHECKING:
    from shorthorn.standalone.apiserver.kinds import Kind, KindSet

# Field numbers, by message.
_DOCUMENT_SWAGGER, _DOCUMENT_INFO, _DOCUMENT_PATHS = 1, 2, 8
_INFO_TITLE, _INFO_VERSION = 1, 2
_PATHS_PATH, _PATH_ITEM_PATCH = 2, 8
_OPERATION_PARAMETERS, _OPERATION_EXTENSION = 8, 13
_ITEM_PARAMETER, _PARAMETER_NON_BODY, _NON_BODY_QUERY = 1, 2, 3
_QUERY_IN, _QUERY_NAME, _QUERY_TYPE = 2, 4, 6
_NAMED_NAME, _NAMED_VALUE, _ANY_YAML = 1, 2, 2


def openapi_v2(kinds: KindSet) -> bytes:
    """Return the document as protobuf."""
    paths = b"".join(
        _field(_PATHS_PATH, _named(_path(kind, version), _field(_PATH_ITEM_PATCH, patch)))
        for kind in kinds
        for version in kind.versions
        for patch in [_patch(kind, version)]
    )
    info = _field(_INFO_TITLE, b"Kubernetes") + _field(
        _INFO_VERSION, f"v{KUBERNETES_VERSION}".encode()
    )
    return (
        _field(_DOCUMENT_SWAGGER, b"2.0")
        + _field(_DOCUMENT_INFO, info)
        + _field(_DOCUMENT_PATHS, paths)
    )


def _path(kind: Kind, version: str) -> str:
    base = f"/apis/{kind.group}/{version}" if kind.group else f"/api/{version}"
    scope = "/namespaces/{namespace}" if kind.namespaced else ""
    return f"{base}{scope}/{kind.plural}/{{name}}"


def _patch(kind: Kind, version: str) -> bytes:
    """Return the Operation message of a kind's patch."""
    query = (
        _field(_QUERY_IN, b"query")
        + _field(_QUERY_NAME, b"dryRun")
        + _field(_QUERY_TYPE, b"string")
    )
    parameter = _field(_PARAMETER_NON_BODY, _field(_NON_BODY_QUERY, query))
    # JSON is YAML.
    gvk = msgspec.json.encode({"group": kind.group, "version": version, "kind": kind.kind})
    extension = _named("x-kubernetes-group-version-kind", _field(_ANY_YAML, gvk))
    return _field(_OPERATION_PARAMETERS, _field(_ITEM_PARAMETER, parameter)) + _field(
        _OPERATION_EXTENSION, extension
    )


def _named(name: str, value: bytes) -> bytes:
    return _field(_NAMED_NAME, name.encode()) + _field(_NAMED_VALUE, value)


def _field(number: int, value: bytes) -> bytes:
    """Return a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
