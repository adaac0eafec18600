"""/api/openapi.json describes the routes there are, and no others."""

from __future__ import annotations

import json
from importlib import resources

from starlette.routing import Route

from shorthorn.web import api

DOCUMENT = json.loads((resources.files("shorthorn.web") / "openapi.json").read_text())


def test_every_route_is_described_and_every_description_has_a_route() -> None:
    described = {
        (path, method.upper())
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method != "parameters"
    }
    served = {
        (route.path, method)
        for route in api.routes
        if isinstance(route, Route) and route.path != "/api/openapi.json"
        for method in route.methods or ()
    }
    assert described == served


def test_every_answer_says_what_it_means() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for item in DOCUMENT["paths"].values():
        for method, operation in item.items():
            if method != "parameters":
                assert operation["summary"]
                assert all(answer["description"] for answer in operation["responses"].values())
