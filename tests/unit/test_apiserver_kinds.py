"""Kinds: what the CRD files say, and what is refused at start."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shorthorn.standalone.apiserver import discovery
from shorthorn.standalone.apiserver.kinds import (
    KindInvalid,
    KindSet,
    load_default_kinds,
    parse_kind,
)
from shorthorn.standalone.apiserver.negotiation import Form
from shorthorn.standalone.apiserver.rendering import Renderer
from shorthorn.standalone.apiserver.schema import SchemaUnsupported

CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"kind": "Thing", "plural": "things"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"size": {"type": "integer"}},
                            },
                        },
                    }
                },
                "selectableFields": [{"jsonPath": ".spec.size"}],
            },
            {"name": "v1beta1", "served": True, "storage": False, "deprecated": True},
            {"name": "v1alpha1", "served": False, "storage": False},
        ],
    },
}


def test_names_versions_and_warnings_come_from_the_file():
    kind = parse_kind(CRD)
    assert (kind.resource, kind.list_kind, kind.singular) == (
        "things.example.com",
        "ThingList",
        "thing",
    )
    assert list(kind.versions) == ["v1", "v1beta1"]
    assert kind.versions["v1beta1"].warning == "example.com/v1beta1 Thing is deprecated"
    assert kind.selectable_fields == {"spec.size"}
    assert not kind.has_status


def test_a_rule_that_cannot_be_evaluated_refuses_to_start():
    crd = copy.deepcopy(CRD)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["x-kubernetes-validations"] = [{"rule": "self.spec.size.frobnicate()"}]
    with pytest.raises(SchemaUnsupported):
        parse_kind(crd)


def test_a_stored_version_must_be_served():
    crd = copy.deepcopy(CRD)
    crd["spec"]["versions"][0]["served"] = False
    with pytest.raises(KindInvalid, match="not served"):
        parse_kind(crd)


def test_other_documents_are_no_kinds():
    with pytest.raises(KindInvalid, match="ConfigMap is not"):
        parse_kind({"kind": "ConfigMap"})


def test_a_kind_cannot_be_defined_twice():
    with pytest.raises(KindInvalid, match="defined twice"):
        KindSet([parse_kind(CRD), parse_kind(CRD)])


def test_every_shipped_kind_can_be_printed_in_every_version():
    kinds = list(load_default_kinds())
    assert len(kinds) >= 20
    for kind in kinds:
        for version in kind.versions:
            assert Renderer(kind, version, Form.TABLE_V1, "Metadata").key


def test_no_name_means_two_kinds():
    seen: dict[str, str] = {}
    for kind in load_default_kinds():
        for name in {kind.plural, kind.singular, *kind.short_names}:
            assert isinstance(name, str)
            assert seen.setdefault(name, kind.resource) == kind.resource, name


def test_the_preferred_version_is_the_stored_one():
    groups = {g["name"]: g for g in discovery.group_list(load_default_kinds())["groups"]}
    snapshots = groups["snapshot.storage.k8s.io"]
    assert snapshots["preferredVersion"]["version"] == "v1"
    assert [v["version"] for v in snapshots["versions"]] == ["v1", "v1beta1"]
    assert "" not in groups
