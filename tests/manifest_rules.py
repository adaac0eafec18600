"""What every manifest of ours must keep to, whichever way it was rendered.

Each rule is a function from documents to complaints; an empty list means right. Used by the tests
of the plain manifests and of the chart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Document = dict[str, Any]

#: The one version of each kind that clusters of today serve.
API_VERSIONS = {
    "CSIDriver": "storage.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "DaemonSet": "apps/v1",
    "Deployment": "apps/v1",
    "Namespace": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "StorageClass": "storage.k8s.io/v1",
    "ValidatingAdmissionPolicy": "admissionregistration.k8s.io/v1",
    "ValidatingAdmissionPolicyBinding": "admissionregistration.k8s.io/v1",
    "VolumeSnapshotClass": "snapshot.storage.k8s.io/v1",
}
CLUSTER_WIDE = {
    "CSIDriver",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "VolumeSnapshotClass",
}
WORKLOADS = {"DaemonSet", "Deployment"}


def of_kind(documents: Iterable[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def containers_of(workload: Document) -> dict[str, Document]:
    """Return a workload's containers by name."""
    return {c["name"]: c for c in workload["spec"]["template"]["spec"]["containers"]}


def complaints_about(documents: Sequence[Document]) -> list[str]:
    """Return every complaint of every rule."""
    return [complaint for rule in RULES for complaint in rule(documents)]


def unknown_kinds(documents: Sequence[Document]) -> list[str]:
    return [
        f"{_where(d)}: {d['apiVersion']} is not the version to use"
        for d in documents
        if API_VERSIONS.get(d["kind"]) != d["apiVersion"]
    ]


def misplaced(documents: Sequence[Document]) -> list[str]:
    return [
        f"{_where(d)}: is {'' if d['kind'] in CLUSTER_WIDE else 'not '}cluster-wide"
        for d in documents
        if ("namespace" in d["metadata"]) == (d["kind"] in CLUSTER_WIDE)
    ]


def twice(documents: Sequence[Document]) -> list[str]:
    names = [_where(d) for d in documents]
    return [f"{name}: is there twice" for name in sorted({n for n in names if names.count(n) > 1})]


def dangling_roles(documents: Sequence[Document]) -> list[str]:
    """Bindings name roles and accounts that exist, every role is bound, every account is used."""
    there = {_where(d) for d in documents}
    bindings = of_kind(documents, "RoleBinding", "ClusterRoleBinding")
    bound = {_target(binding) for binding in bindings}
    subjects = {
        f"ServiceAccount {subject['namespace']}/{subject['name']}"
        for binding in bindings
        for subject in binding["subjects"]
    }
    used = {
        f"ServiceAccount {w['metadata']['namespace']}/"
        f"{w['spec']['template']['spec']['serviceAccountName']}"
        for w in of_kind(documents, *WORKLOADS)
    }
    roles = {_where(d) for d in of_kind(documents, "Role", "ClusterRole")}
    accounts = {_where(d) for d in of_kind(documents, "ServiceAccount")}
    return [
        *(f"{name}: does not exist" for name in sorted((bound | subjects | used) - there)),
        *(f"{name}: is bound to nobody" for name in sorted(roles - bound)),
        *(f"{name}: is used by no pod" for name in sorted(accounts - used)),
    ]


def wide_rights(documents: Sequence[Document]) -> list[str]:
    """No wildcard; Secrets are read by name alone; nobody grants rights."""
    found = []
    for role in of_kind(documents, "Role", "ClusterRole"):
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "*" in words:
                found.append(f"{_where(role)}: has a wildcard")
            if {"escalate", "bind", "impersonate"} & set(words):
                found.append(f"{_where(role)}: could grant itself rights")
            if "secrets" in rule["resources"] and rule["verbs"] != ["create"]:
                named = bool(rule.get("resourceNames")) and role["kind"] == "Role"
                if not named or {"create", "delete", "deletecollection"} & set(rule["verbs"]):
                    found.append(f"{_where(role)}: may read more Secrets than its own")
    return found


def loose_images(documents: Sequence[Document]) -> list[str]:
    found = []
    for workload in of_kind(documents, *WORKLOADS):
        for name, container in containers_of(workload).items():
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if not tag or tag == "latest":
                found.append(f"{_where(workload)}: {name}: image {container['image']} is not fixed")
    return found


def unfit_pods(documents: Sequence[Document]) -> list[str]:
    """Selectors fit, mounts have volumes, probes have ports, only the driver is privileged."""
    found = []
    for workload in of_kind(documents, *WORKLOADS):
        spec, where = workload["spec"]["template"]["spec"], _where(workload)
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        if not workload["spec"]["selector"]["matchLabels"].items() <= labels:
            found.append(f"{where}: selects none of its own pods")
        if spec.get("hostPID") or spec.get("hostNetwork") or spec.get("hostIPC"):
            found.append(f"{where}: shares a namespace with the host")
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        mounted = set()
        for name, container in containers_of(workload).items():
            security = container["securityContext"]
            mounted |= {mount["name"] for mount in container.get("volumeMounts", ())}
            is_driver = workload["kind"] == "DaemonSet" and name == "shorthorn"
            if bool(security.get("privileged")) != is_driver:
                found.append(f"{where}: {name}: privileged is not what it should be")
            if not security.get("readOnlyRootFilesystem"):
                found.append(f"{where}: {name}: can write to its root file system")
            if not is_driver and security.get("capabilities") != {"drop": ["ALL"]}:
                found.append(f"{where}: {name}: keeps capabilities")
            if "requests" not in container["resources"]:
                found.append(f"{where}: {name}: requests no resources")
        found += [f"{where}: volume {name} is not mounted" for name in sorted(volumes - mounted)]
        found += [f"{where}: volume {name} is missing" for name in sorted(mounted - volumes)]
    return found


RULES: tuple[Callable[[Sequence[Document]], list[str]], ...] = (
    unknown_kinds,
    misplaced,
    twice,
    dangling_roles,
    wide_rights,
    loose_images,
    unfit_pods,
)


def _where(document: Document) -> str:
    meta = document["metadata"]
    place = f"{meta['namespace']}/" if "namespace" in meta else ""
    return f"{document['kind']} {place}{meta['name']}"


def _target(binding: Document) -> str:
    role = binding["roleRef"]
    place = f"{binding['metadata']['namespace']}/" if role["kind"] == "Role" else ""
    return f"{role['kind']} {place}{role['name']}"
