"""The three objects of a restore, made with the user's rights: all of them, or none.

Owns: that everything is asked first (a dry run of each), what counts as the same object, and taking
back what one request made before it failed. Must never: know a form. Called by `pages.restore`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from shorthorn.domain.errors import DomainError, InvalidArgument
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused

if TYPE_CHECKING:
    from shorthorn.kube.user_api import Resource, UserApi

Object = Mapping[str, Any]

#: In the order in which they are made; each names the one before it.
KINDS: Final = (user_api.CONTENTS, user_api.VOLUME_SNAPSHOTS, user_api.CLAIMS)
_QUANTITY: Final = re.compile(r"([1-9][0-9]{0,14})(Ki|Mi|Gi|Ti|)")
_UNITS: Final = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def parse_size(text: str) -> int | None:
    """Return the bytes of `10Gi` or `1048576`; None for what is not written so."""
    found = _QUANTITY.fullmatch(text)
    return int(found[1]) * _UNITS[found[2]] if found else None


class Restoring:
    """One user's restores. `token`: theirs."""

    def __init__(self, api: UserApi, token: str) -> None:
        self._api = api
        self._token = token

    async def make(self, objects: Sequence[Object]) -> None:
        """Make content, snapshot and claim; what exists already and is the same stays.

        Raises: InvalidArgument: an object of that name is about something else. Refused,
            Unavailable.
        State: after an error before the first write nothing was made; after a later one what this
            call made is deleted again, as far as the user may do that and the API server answers.
            What stays is no obstacle to the same call.
        """
        missing = [
            (kind, obj)
            for kind, obj in zip(KINDS, objects, strict=True)
            if await self._create(kind, obj, dry_run=True) is not None
        ]
        made: list[tuple[Resource, Object]] = []
        try:
            for kind, obj in missing:
                answer = await self._create(kind, obj)
                if answer is not None:
                    made.append((kind, answer))
        except (DomainError, Refused):
            await self._remove(made)
            raise

    async def _create(self, kind: Resource, obj: Object, *, dry_run: bool = False) -> Object | None:
        """Return the new object; None where the same one exists."""
        path = kind.path(_namespace(obj))
        query = {"dryRun": "All"} if dry_run else {}
        try:
            return await self._api.request(self._token, "POST", path, body=obj, query=query)
        except Refused as exc:
            if exc.reason != "AlreadyExists":
                raise
        await self._check_same(kind, obj)
        return None

    async def _check_same(self, kind: Resource, wanted: Object) -> None:
        name = _name(wanted)
        found = await self._get(kind, wanted)
        if found["metadata"].get("deletionTimestamp"):
            told = f"{kind.kind} {name} is being deleted; try again in a moment"
            raise InvalidArgument("name", told)
        if not _IS_SAME[kind](found.get("spec") or {}, wanted["spec"]):
            told = f"there is another {kind.kind} {name} already; choose another name"
            raise InvalidArgument("name", told)
        if kind is user_api.CONTENTS:
            await self._check_unbound(found)

    async def _check_unbound(self, content: Object) -> None:
        """Raise where a content is bound to a VolumeSnapshot that is gone: no other can use it."""
        reference = content["spec"]["volumeSnapshotRef"]
        if not reference.get("uid"):
            return
        try:
            snapshot = await self._get(user_api.VOLUME_SNAPSHOTS, {"metadata": reference})
        except Refused as exc:
            if exc.code != 404:
                raise
            snapshot = {"metadata": {}}
        if snapshot["metadata"].get("uid") != reference["uid"]:
            told = (
                f"VolumeSnapshotContent {_name(content)} is left over from a VolumeSnapshot that"
                " was deleted; delete it too, or choose another name"
            )
            raise InvalidArgument("name", told)

    async def _get(self, kind: Resource, obj: Object) -> Object:
        return await self._api.request(self._token, "GET", kind.path(_namespace(obj), _name(obj)))

    async def _remove(self, made: Sequence[tuple[Resource, Object]]) -> None:
        for kind, obj in reversed(made):
            # By its UID: whatever has the name by now may be somebody else's.
            body = {"preconditions": {"uid": obj["metadata"]["uid"]}}
            path = kind.path(_namespace(obj), _name(obj))
            with contextlib.suppress(DomainError, Refused):
                await self._api.request(self._token, "DELETE", path, body=body)


def _is_same_content(found: Object, wanted: Object) -> bool:
    ours, theirs = wanted["volumeSnapshotRef"], found.get("volumeSnapshotRef") or {}
    return (
        found.get("source") == wanted["source"]
        and found.get("driver") == wanted["driver"]
        and all(theirs.get(key) == ours[key] for key in ("name", "namespace"))
    )


def _is_same_snapshot(found: Object, wanted: Object) -> bool:
    return bool(found.get("source") == wanted["source"])


def _is_same_claim(found: Object, wanted: Object) -> bool:
    source = found.get("dataSource") or {}
    return (
        all(source.get(key) == value for key, value in wanted["dataSource"].items())
        and found.get("storageClassName") == wanted["storageClassName"]
        and found.get("volumeMode", "Filesystem") == wanted.get("volumeMode", "Filesystem")
        and _size_of(found) == _size_of(wanted)
    )


_IS_SAME: Final = {
    user_api.CONTENTS: _is_same_content,
    user_api.VOLUME_SNAPSHOTS: _is_same_snapshot,
    user_api.CLAIMS: _is_same_claim,
}


def _size_of(spec: Object) -> int | None:
    """Return what a claim asks for: API servers write 1024Gi as 1Ti."""
    requests = (spec.get("resources") or {}).get("requests") or {}
    return parse_size(str(requests.get("storage", "")))


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _namespace(obj: Object) -> str:
    return str(obj["metadata"].get("namespace", ""))
