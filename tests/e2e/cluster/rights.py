"""Which rights the chart grants, and which of them were used.

Owns: reading both, from what was rendered and from the API server's audit log. Must never: talk to
the cluster. Called by the test of rights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


def used(audit_log: Path, namespace: str) -> set[Right]:
    """Return every right that service accounts of `namespace` have used with success."""
    return {right for right, _, is_allowed in _requests(audit_log, namespace) if is_allowed}


def refused(audit_log: Path, namespace: str) -> set[Right]:
    """Return what service accounts of `namespace` asked for and were never allowed.

    An API server that has just started refuses everything until it has read the roles; what it
    allows for the same object at another time is no missing right.
    """
    allowed: set[tuple[Right, str]] = set()
    denied: set[tuple[Right, str]] = set()
    for right, name, is_allowed in _requests(audit_log, namespace):
        (allowed if is_allowed else denied).add((right, name))
    return {right for right, _ in denied - allowed}


def _requests(audit_log: Path, namespace: str) -> Iterator[tuple[Right, str, bool]]:
    """Yield each request of the accounts: the right for it, the object's name, if it was allowed.

    The name is empty where the role cannot depend on it: in creations.
    """
    for line in audit_log.read_text().splitlines():
        event = json.loads(line)
        who = event["user"]["username"]
        target = event.get("objectRef")
        if target and who.startswith(f"{_ACCOUNT}{namespace}:"):
            resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
            verb = event["verb"]
            right = Right(who.rpartition(":")[2], target.get("apiGroup", ""), resource, verb)
            name = "" if verb == "create" else target.get("name", "")
            yield right, name, _was_allowed(event)


def _was_allowed(event: Mapping[str, Any]) -> bool:
    annotations = event.get("annotations") or {}
    return annotations.get("authorization.k8s.io/decision") == "allow"
