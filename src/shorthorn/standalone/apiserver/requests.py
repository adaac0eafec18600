"""What a request asks for: its path and query taken apart.

Owns the grammar of Kubernetes API paths and options. It must not know which kinds exist and does no
I/O. Called by `handlers`.
Source: apiserver `pkg/endpoints/request/requestinfo.go`, meta/v1 ListOptions and friends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.standalone.apiserver import status

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELD_VALIDATIONS = ("Strict", "Warn", "Ignore")


@dataclass(frozen=True, slots=True)
class ResourcePath:
    """A path below /api or /apis; blank members were not in the path."""

    group: str
    version: str
    namespace: str
    plural: str
    name: str
    subresource: str


def parse_path(path: str) -> ResourcePath | None:
    """Take a resource path apart; None when it is no path of a resource."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        group, rest = "", parts[1:]
    elif parts[0] == "apis" and len(parts) > 1:
        group, rest = parts[1], parts[2:]
    else:
        return None
    if len(rest) < 2:
        return None
    version, rest = rest[0], rest[1:]
    namespace = ""
    is_namespace_itself = len(rest) <= 2 or rest[2] in ("status", "finalize")
    if rest[0] == "namespaces" and not is_namespace_itself:
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 or not all(rest):
        return None
    plural, name, subresource = (*rest, "", "")[:3]
    return ResourcePath(group, version, namespace, plural, name, subresource)


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The query of a list, a watch or a collection's deletion."""

    label_selector: str
    field_selector: str
    limit: int
    continue_token: str
    resource_version: str
    resource_version_match: str
    is_watch: bool
    timeout_s: float | None
    has_bookmarks: bool
    wants_initial_events: bool
    include_object: str


def list_options(query: Mapping[str, str]) -> ListOptions:
    """Read the options of a list or watch. Raises: StatusError 400."""
    timeout_s = float(_number(query, "timeoutSeconds"))
    return ListOptions(
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
        limit=_number(query, "limit"),
        continue_token=query.get("continue", ""),
        resource_version=query.get("resourceVersion", ""),
        resource_version_match=query.get("resourceVersionMatch", ""),
        is_watch=_flag(query, "watch"),
        timeout_s=timeout_s or None,
        has_bookmarks=_flag(query, "allowWatchBookmarks"),
        wants_initial_events=_flag(query, "sendInitialEvents"),
        include_object=query.get("includeObject", "Metadata"),
    )


def field_validation(query: Mapping[str, str]) -> str:
    """Return how strict a write is; Strict unless told, since old kubectls do not ask."""
    value = query.get("fieldValidation") or "Strict"
    if value not in FIELD_VALIDATIONS:
        supported = ", ".join(f'"{v}"' for v in FIELD_VALIDATIONS)
        raise status.bad_request(
            f'fieldValidation: Unsupported value: "{value}": supported values: {supported}'
        )
    return value


def is_dry_run(query: Mapping[str, str], body: object = None) -> bool:
    """Whether nothing may be stored, said in the query or in DeleteOptions."""
    stated: object = query.get("dryRun")
    if isinstance(body, dict) and body.get("dryRun"):
        members = body["dryRun"]
        stated = members[0] if isinstance(members, list) and len(members) == 1 else members
    if stated is None:
        return False
    if stated != "All":
        raise status.bad_request(f'dryRun: Unsupported value: "{stated}": supported values: "All"')
    return True


def parse_version(text: str) -> int:
    """Read a resourceVersion; blank is 0. Raises: StatusError 400."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise status.bad_request(f'Invalid value: "{text}": resourceVersion must be a number')
    return int(text)


def _number(query: Mapping[str, str], key: str) -> int:
    text = query.get(key, "")
    if not text:
        return 0
    try:
        value = int(text)
    except ValueError:
        raise status.bad_request(f"{key}: {text!r} is not a number") from None
    return max(value, 0)


def _flag(query: Mapping[str, str], key: str) -> bool:
    text = query.get(key, "false").lower()
    if text not in ("true", "false", "1", "0", "t", "f", ""):
        raise status.bad_request(f"{key}: {text!r} is not true or false")
    return text in ("true", "1", "t")
