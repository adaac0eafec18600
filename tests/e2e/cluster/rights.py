"""Which rights the chart grants, and which of them were used.

Owns: reading both, from what was rendered and from the API servers' audit logs, and keeping what is
in a log for as long as all tests run. Must never: talk to a cluster. Called by the
fixtures of releases and by the tests of rights.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: The variable that names the directory for what was asked for.
RECORDS = "SHORTHORN_E2E_RIGHTS"
_SUFFIX = ".jsonl"
_ACCOUNT = "system:serviceaccount:"


class Right(NamedTuple):
    """One verb on one resource (`pods/status`), for one service account."""

    account: str
    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        where = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.account}: {self.verb} {where}"


class Request(NamedTuple):
    """What was asked for. `name`: the object's; empty where no role depends on it: in creations,
    and of events, which nobody asks for a second time.
    """

    right: Right
    name: str
    is_allowed: bool


def granted(documents: Sequence[Mapping[str, Any]]) -> set[Right]:
    """Return every right in the roles that are bound to service accounts."""
    roles = {
        (d["kind"], d["metadata"]["name"]): d["rules"]
        for d in documents
        if d["kind"] in ("Role", "ClusterRole")
    }
    found: set[Right] = set()
    for binding in documents:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            rules = roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
            for subject in binding["subjects"]:
                found |= set(_rights(subject["name"], rules))
    return found


def _rights(account: str, rules: Sequence[Mapping[str, Any]]) -> Iterator[Right]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield Right(account, group, resource, verb)


def used(requests: Iterable[Request]) -> set[Right]:
    """Return every right that was used with success."""
    return {request.right for request in requests if request.is_allowed}


def refused(requests: Iterable[Request]) -> set[Right]:
    """Return what was asked for and never allowed.

    An API server that has just started refuses everything until it has read the roles; what it
    allows for the same object at another time is no missing right.
    """
    every = list(requests)
    allowed = {(r.right, r.name) for r in every if r.is_allowed}
    return {r.right for r in every if not r.is_allowed and (r.right, r.name) not in allowed}


@contextlib.contextmanager
def recorded(audit_log: Path, namespace: str) -> Iterator[None]:
    """Keep at the end what the accounts of a namespace asked for, for the tests of rights.

    Only where `scripts/e2e` runs all tests, which names the directory.
    """
    try:
        yield
    finally:
        directory = os.environ.get(RECORDS)
        if directory:
            lines = sorted({json.dumps(request) for request in requests_in(audit_log, namespace)})
            with tempfile.NamedTemporaryFile("w", dir=directory, suffix=_SUFFIX, delete=False) as f:
                f.writelines(f"{line}\n" for line in lines)


def requests_recorded(directory: Path) -> list[Request]:
    """Return what all tests have recorded."""
    lines = [li for path in directory.glob(f"*{_SUFFIX}") for li in path.read_text().splitlines()]
    parts = [json.loads(line) for line in lines]
    return [Request(Right(*right), name, is_allowed) for right, name, is_allowed in parts]


def requests_in(audit_log: Path, namespace: str) -> Iterator[Request]:
    """Yield each request of the accounts."""
    for line in audit_log.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return  # it is being written
        event = json.loads(line)
        who = event["user"]["username"]
        target = event.get("objectRef")
        if target and who.startswith(f"{_ACCOUNT}{namespace}:"):
            resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
            verb = event["verb"]
            right = Right(who.rpartition(":")[2], target.get("apiGroup", ""), resource, verb)
            is_named = verb != "create" and target["resource"] != "events"
            name = target.get("name", "") if is_named else ""
            yield Request(right, name, _was_allowed(event))


def _was_allowed(event: Mapping[str, Any]) -> bool:
    annotations = event.get("annotations") or {}
    return annotations.get("authorization.k8s.io/decision") == "allow"
