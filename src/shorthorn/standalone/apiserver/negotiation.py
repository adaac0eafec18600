"""Content types: which form an answer takes, and how a body is read.

Owns the reading of `Accept` and `Content-Type`. JSON is written; JSON and YAML are read; protobuf
and server-side apply are refused in words that name the way out. Called by `handlers`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import msgspec

from shorthorn.standalone.apiserver import status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCHES = frozenset({"application/apply-patch+yaml", "application/apply-patch+cbor"})
_PROTOBUF = "application/vnd.kubernetes.protobuf"
_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
_YAML_DEPTH_MAX = 128
"""Objects that anybody writes are nested a quarter of that."""


class Form(enum.Enum):
    """The form of an answer's objects."""

    JSON = "json"
    TABLE_V1 = "meta.k8s.io/v1"
    TABLE_V1BETA1 = "meta.k8s.io/v1beta1"
    METADATA = "metadata"


def choose_form(accept: str) -> Form:
    """Pick the first acceptable form. Raises: StatusError 406: nothing we write is accepted."""
    if not accept.strip():
        return Form.JSON
    for media_type, parameters in _media_types(accept):
        if media_type not in ("application/json", "application/*", "*/*"):
            continue
        target = parameters.get("as")
        if target is None:
            return Form.JSON
        version = parameters.get("v", "v1")
        if target == "Table" and parameters.get("g") == "meta.k8s.io":
            if version == "v1":
                return Form.TABLE_V1
            if version == "v1beta1":
                return Form.TABLE_V1BETA1
        if target in ("PartialObjectMetadata", "PartialObjectMetadataList") and version == "v1":
            return Form.METADATA
    raise status.not_acceptable(
        "only the following media types are accepted: application/json, "
        "application/json;as=Table;v=v1;g=meta.k8s.io, "
        f"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io; asked for {accept}"
    )


def _media_types(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    for entry in header.split(","):
        media_type, *rest = (part.strip() for part in entry.split(";"))
        pairs = (part.partition("=") for part in rest)
        yield media_type.lower(), {key.strip(): value.strip() for key, _, value in pairs}


def media_type_of(content_type: str) -> str:
    """Return the bare media type of a Content-Type header."""
    return content_type.partition(";")[0].strip().lower()


def decode_body(body: bytes, content_type: str) -> Any:
    """Read a request body as JSON or YAML. Raises: StatusError 400, 415."""
    media_type = media_type_of(content_type)
    if media_type in _YAML_TYPES:
        return _decode_yaml(body)
    if media_type == _PROTOBUF:
        raise status.unsupported_media_type(
            "this API server does not read protobuf, only application/json and application/yaml; "
            "for kubectl create, add: --dry-run=client -o yaml | kubectl apply -f -"
        )
    if media_type not in ("", "application/json"):
        raise status.unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: "
            f"application/json, application/yaml; this one is {media_type}"
        )
    return decode_json(body)


def decode_json(body: bytes) -> Any:
    """Read JSON. Raises: StatusError 400."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise status.bad_request(f"couldn't get version/kind; json parse error: {exc}") from exc


def decode_object(body: bytes, content_type: str) -> dict[str, Any]:
    """Read a body that must be one object. Raises: StatusError 400, 415."""
    decoded = decode_body(body, content_type)
    if not isinstance(decoded, dict):
        raise status.bad_request("the body of the request is not an object")
    return decoded


def _decode_yaml(body: bytes) -> Any:
    import yaml  # only curl users come here

    class JsonLoader(yaml.CSafeLoader):
        """YAML read as kubectl reads it: what looks like a date stays a string."""

    JsonLoader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        _refuse_unbounded(yaml.parse(body, Loader=yaml.CSafeLoader))
        return _with_string_keys(yaml.load(body, Loader=JsonLoader))
    except (yaml.YAMLError, RecursionError, TypeError) as exc:
        raise status.bad_request(f"error parsing YAML: {exc}") from exc


def _refuse_unbounded(events: Iterable[Any]) -> None:
    """Refuse what costs more than its length: nesting, for which libyaml overflows the stack and
    ends the process, and aliases, of which a few lines make gigabytes.

    Raises: StatusError 400.
    """
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent")
        depth -= kind.endswith("EndEvent")
        if depth > _YAML_DEPTH_MAX:
            raise status.bad_request("error parsing YAML: it is nested too deeply")
        if kind == "AliasEvent":
            raise status.bad_request("error parsing YAML: aliases (*name) are not read here")


def _with_string_keys(value: Any) -> Any:
    """Make keys strings as kubectl does: YAML reads `on:` and `1:` as something else."""
    if isinstance(value, list):
        return [_with_string_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key if isinstance(key, str) else msgspec.json.encode(key).decode(): _with_string_keys(item)
        for key, item in value.items()
    }


def unsupported_patch(media_type: str, accepted: tuple[str, ...]) -> status.StatusError:
    """415 for a patch; server-side apply is told what works instead."""
    listed = ", ".join(accepted)
    if media_type in APPLY_PATCHES:
        return status.unsupported_media_type(
            "this API server does not do server-side apply; use client-side apply (kubectl apply "
            f"without --server-side) or one of: {listed}"
        )
    return status.unsupported_media_type(
        "the body of the request was in an unknown format - accepted media types include: "
        f"{listed}; this one is {media_type or 'not named'}"
    )
