"""What every Kubernetes API server promises us, as tests through the typed client and plain HTTP.

A test module subclasses `ApiSuite` and gives it a fixture `endpoint` (a running server that serves
our CRDs). Nothing here may rely on the embedded server: the suite holds for a real kube-apiserver
with the same CRDs too, where no controller of ours runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from lightkube import ApiError, AsyncClient
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.models.core_v1 import (
    PersistentVolumeClaimSpec,
    VolumeResourceRequirements,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap, Namespace, PersistentVolumeClaim, Secret
from lightkube.resources.storage_v1 import StorageClass
from lightkube.types import CascadeType, PatchType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: A garbage collector of Kubernetes learns of new kinds every half minute.
DEADLINE_S = 60.0
FIVE = ["i1", "i2", "i3", "i4", "i5"]
BackingImage: Any = create_namespaced_resource(
    "longhorn.io", "v1beta2", "BackingImage", "backingimages"
)
ImageCopy: Any = create_namespaced_resource("shorthorn.io", "v1alpha1", "ImageCopy", "imagecopies")
VolumeSnapshot: Any = create_namespaced_resource(
    "snapshot.storage.k8s.io", "v1", "VolumeSnapshot", "volumesnapshots"
)
VolumeSnapshotClass: Any = create_global_resource(
    "snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass", "volumesnapshotclasses"
)
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@dataclass(frozen=True)
class Endpoint:
    """A server to test: a typed client, and plain HTTP with the same credentials."""

    client: AsyncClient
    http: httpx2.AsyncClient


@dataclass
class Api:
    """The endpoint, and a namespace that belongs to one test."""

    client: AsyncClient
    http: httpx2.AsyncClient
    namespace: str
    cluster_objects: list[tuple[Any, str]] = field(default_factory=list)

    def images(self, name: str = "", *, version: str = "longhorn.io/v1beta2") -> str:
        """Return the path of backing images, or of one."""
        path = f"/apis/{version}/namespaces/{self.namespace}/backingimages"
        return f"{path}/{name}" if name else path

    def snapshots(self, version: str) -> str:
        return (
            f"/apis/snapshot.storage.k8s.io/{version}/namespaces/{self.namespace}/volumesnapshots"
        )

    def image(self, name: str = "golden", **metadata: Any) -> Any:
        """Return a valid backing image that is not stored yet."""
        return BackingImage(
            metadata=ObjectMeta(name=name, namespace=self.namespace, **metadata),
            spec={"sourceType": "download", "sourceParameters": {"url": "http://h/a.raw"}},
        )

    def body(self, name: str = "golden") -> dict[str, Any]:
        """Return a valid backing image as JSON."""
        described = {"apiVersion": "longhorn.io/v1beta2", "kind": "BackingImage"}
        return {**described, **self.image(name).to_dict()}

    async def create_image(self, name: str = "golden", **metadata: Any) -> Any:
        return await self.client.create(self.image(name, **metadata))

    async def get_image(self, name: str = "golden") -> Any:
        return await self.client.get(BackingImage, name, namespace=self.namespace)

    async def put(self, image: Any) -> Any:
        return await self.client.replace(image)

    async def merge(self, name: str, patch: dict[str, Any], **options: Any) -> Any:
        """Merge-patch a backing image."""
        return await self.client.patch(
            BackingImage,
            name,
            patch,
            namespace=self.namespace,
            patch_type=PatchType.MERGE,
            **options,
        )

    async def names(self, **selectors: Any) -> list[str]:
        """Return the names of the backing images that match."""
        found = self.client.list(BackingImage, namespace=self.namespace, **selectors)
        return [image.metadata.name async for image in found]

    async def review(self, group: str, kind: str, spec: dict[str, Any]) -> httpx2.Response:
        """Ask the server a question about a user."""
        body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
        return await self.http.post(f"/apis/{group}/v1/{kind.lower()}s", json=body)

    async def create_class(self, **metadata: Any) -> Any:
        """Add a cluster-scoped object that is removed after the test."""
        name = f"class-{secrets.token_hex(4)}"
        made = await self.client.create(
            StorageClass(provisioner="p.example.com", metadata=ObjectMeta(name=name, **metadata))
        )
        self.cluster_objects.append((StorageClass, name))
        return made

    async def until(self, name: str, holds: Callable[[Any], bool]) -> None:
        """Wait until a backing image satisfies a condition."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if holds(await self.get_image(name)):
                    return
                await asyncio.sleep(0.02)

    async def is_gone(self, resource: Any, name: str, *, timeout_s: float = DEADLINE_S) -> bool:
        """Wait until an object is not found any more."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await self.client.get(resource, name, namespace=self.namespace)
                except ApiError as exc:
                    if exc.status.code == 404:
                        return True
                    raise
                await asyncio.sleep(0.02)


def owner(obj: Any, **members: Any) -> dict[str, Any]:
    """Return an owner reference to `obj`."""
    return {
        "apiVersion": obj.apiVersion,
        "kind": obj.kind,
        "name": obj.metadata.name,
        "uid": obj.metadata.uid,
        **members,
    }


@contextlib.asynccontextmanager
async def refused(code: int, reason: str) -> AsyncIterator[ApiErrorBox]:
    """Expect an API error of this code and reason; the box has it afterwards."""
    box = ApiErrorBox()
    with pytest.raises(ApiError) as caught:
        yield box
    box.error = caught.value
    assert (caught.value.status.code, caught.value.status.reason) == (code, reason)


class ApiErrorBox:
    """Holds the error that a block ended in."""

    error: ApiError

    @property
    def message(self) -> str:
        return self.error.status.message or ""

    @property
    def causes(self) -> dict[str, str]:
        """Map each field to the reason why it is refused."""
        details = self.error.status.details
        causes = details.causes if details is not None and details.causes is not None else []
        return {cause.field or "": cause.reason or "" for cause in causes}


class Watching:
    """A raw watch: the lines of one response, read with a deadline."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> dict[str, Any]:
        """Return the next event."""
        async with asyncio.timeout(DEADLINE_S):
            event: dict[str, Any] = json.loads(await anext(self._lines))
            return event

    async def next_named(self) -> tuple[str, str]:
        """Return the next event's type and object name."""
        event = await self.next()
        return event["type"], event["object"]["metadata"]["name"]

    async def is_over(self) -> bool:
        """Whether the server has ended the response."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                await anext(self._lines)
            except StopAsyncIteration:
                return True
        return False


@contextlib.asynccontextmanager
async def watching(
    api: Api, path: str, *, accept: str = "application/json", **query: str
) -> AsyncIterator[Watching]:
    """Watch a path over plain HTTP."""
    query = {"watch": "true", "timeoutSeconds": "20", **query}
    headers = {"Accept": accept}
    async with api.http.stream("GET", path, params=query, headers=headers) as response:
        response.raise_for_status()
        yield Watching(aiter(response.aiter_lines()))


class ApiSuite:
    """Subclass with a module-scoped fixture `endpoint`; every test has a namespace of its own."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def api(self, endpoint: Endpoint) -> AsyncIterator[Api]:
        name = f"test-{secrets.token_hex(4)}"
        await endpoint.client.create(Namespace(metadata=ObjectMeta(name=name)))
        api = Api(endpoint.client, endpoint.http, name)
        try:
            yield api
        finally:
            await endpoint.client.delete(Namespace, name)
            for resource, made in api.cluster_objects:
                await endpoint.client.delete(resource, made)

    # ---- Create and read ------------------------------------------------------------------------

    async def test_a_created_object_comes_back_with_identity_and_defaults(self, api: Api):
        made = await api.create_image()
        assert made.metadata.uid
        assert int(made.metadata.resourceVersion) > 0
        assert made.metadata.creationTimestamp is not None
        assert made.metadata.generation == 1
        assert made.spec["minNumberOfCopies"] == 1
        assert (await api.get_image()).to_dict() == made.to_dict()

    async def test_generate_name_makes_a_new_name_each_time(self, api: Api):
        made = []
        for _ in range(2):
            image = api.image("x", generateName="golden-")
            image.metadata.name = None
            made.append((await api.client.create(image)).metadata.name)
        assert made[0] != made[1]
        assert all(name.startswith("golden-") and len(name) == 12 for name in made)

    async def test_a_missing_object_is_not_found_in_the_usual_words(self, api: Api):
        async with refused(404, "NotFound") as error:
            await api.get_image("nope")
        assert error.message == 'backingimages.longhorn.io "nope" not found'
        async with refused(404, "NotFound") as error:
            await api.client.get(PersistentVolumeClaim, "nope", namespace=api.namespace)
        assert error.message == 'persistentvolumeclaims "nope" not found'

    async def test_a_second_object_of_the_same_name_already_exists(self, api: Api):
        await api.create_image()
        async with refused(409, "AlreadyExists") as error:
            await api.create_image()
        assert error.message == 'backingimages.longhorn.io "golden" already exists'

    async def test_a_namespace_must_exist_before_objects_in_it(self, api: Api):
        image = api.image()
        image.metadata.namespace = "absent"
        async with refused(404, "NotFound") as error:
            await api.client.create(image)
        assert error.message == 'namespaces "absent" not found'

    async def test_what_the_server_owns_is_not_taken_from_the_caller(self, api: Api):
        made = await api.create_image(uid="mine", generation=7, resourceVersion=None)
        assert made.metadata.uid != "mine"
        assert made.metadata.generation == 1

    async def test_status_is_not_taken_at_creation(self, api: Api):
        image = api.image()
        image["status"] = {"size": 1}
        assert not (await api.client.create(image)).status

    @pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "dash-", "a..b", "x" * 254])
    async def test_a_malformed_name_is_invalid(self, api: Api, name: str):
        async with refused(422, "Invalid") as error:
            await api.client.create(
                ConfigMap(metadata=ObjectMeta(name=name, namespace=api.namespace))
            )
        assert set(error.causes) == {"metadata.name"}

    async def test_malformed_labels_are_invalid(self, api: Api):
        async with refused(422, "Invalid") as error:
            await api.create_image(labels={"a": "not a label value"})
        assert error.causes == {"metadata.labels": "FieldValueInvalid"}

    async def test_unknown_fields_are_refused_by_path(self, api: Api):
        body = api.body() | {"volumeSnapshotRef": {"name": "x"}}
        body["spec"]["colour"] = "red"
        answer = await api.http.post(api.images(), json=body, params={"fieldValidation": "Strict"})
        assert answer.status_code == 400
        status = answer.json()
        assert status["reason"] == "BadRequest"
        assert 'strict decoding error: unknown field "spec.colour"' in status["message"]
        assert 'unknown field "volumeSnapshotRef"' in status["message"]

    async def test_unknown_fields_may_be_dropped_with_a_warning(self, api: Api):
        body = api.body()
        body["spec"]["colour"] = "red"
        answer = await api.http.post(api.images(), json=body, params={"fieldValidation": "Warn"})
        assert answer.status_code == 201
        assert "colour" not in answer.json()["spec"]
        assert answer.headers["warning"] == '299 - "unknown field \\"spec.colour\\""'

    async def test_a_schema_violation_names_every_field(self, api: Api):
        image = api.image()
        image.spec |= {"sourceType": "downlod", "minNumberOfCopies": 0}
        async with refused(422, "Invalid") as error:
            await api.client.create(image)
        assert error.causes == {
            "spec.sourceType": "FieldValueNotSupported",
            "spec.minNumberOfCopies": "FieldValueInvalid",
            "<nil>": "FieldValueInvalid",  # Go's word for: the rules of the whole object
        }
        assert error.message.startswith('BackingImage.longhorn.io "golden" is invalid: [')
        assert "some validation rules were not checked" in error.message

    async def test_rules_are_judged_beside_values_out_of_range(self, api: Api):
        image = await api.create_image()
        image.spec |= {"sourceType": "upload", "minNumberOfCopies": 0}
        async with refused(422, "Invalid") as error:
            await api.put(image)
        assert "<nil>" not in error.causes
        assert "spec.minNumberOfCopies" in error.causes
        assert "sourceType is immutable" in error.message

    @pytest.mark.parametrize(
        ("member", "complaint"),
        [
            ("kind", "Object 'Kind' is missing"),
            ("apiVersion", "the API version in the data () does not match the expected"),
        ],
    )
    async def test_a_custom_resource_must_say_what_it_is(
        self, api: Api, member: str, complaint: str
    ):
        body = api.body()
        del body[member]
        answer = await api.http.post(api.images(), json=body)
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
        assert complaint in answer.json()["message"]

    async def test_a_core_object_need_not_say_what_it_is(self, api: Api):
        path = f"/api/v1/namespaces/{api.namespace}/configmaps"
        answer = await api.http.post(path, json={"metadata": {"name": "c"}})
        assert answer.status_code == 201
        assert answer.json()["kind"] == "ConfigMap"

    async def test_cel_rules_see_the_old_object(self, api: Api):
        image = await api.create_image()
        image.spec["sourceType"] = "upload"
        async with refused(422, "Invalid") as error:
            await api.put(image)
        assert "sourceType is immutable" in error.message

    @pytest.mark.parametrize("parameters", [None, {}, {"url": "x"}, {"backing-image": ""}])
    async def test_a_clone_names_what_it_is_made_of(
        self, api: Api, parameters: dict[str, str] | None
    ):
        body = api.body()
        body["spec"] = {"sourceType": "clone", "sourceParameters": parameters}
        answer = await api.http.post(api.images(), json=body)
        assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")
        assert "sourceType clone needs sourceParameters.backing-image" in answer.json()["message"]
        body["spec"]["sourceParameters"] = {"backing-image": "not-there-yet"}
        answer = await api.http.post(api.images(), json=body)
        assert answer.status_code == 201, answer.text

    async def test_yaml_is_read_too(self, api: Api):
        body = (
            "apiVersion: longhorn.io/v1beta2\nkind: BackingImage\n"
            "metadata: {name: golden, labels: {day: 2026-11-23, 1: 'true'}}\n"
            "spec: {sourceType: upload}\n"
        )
        answer = await api.http.post(
            api.images(), content=body, headers={"Content-Type": "application/yaml"}
        )
        assert answer.status_code == 201, answer.text
        assert answer.json()["metadata"]["labels"] == {"day": "2026-11-23", "1": "true"}

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param({"apiVersion": "longhorn.io/v1"}, id="another version"),
            pytest.param({"metadata": {"namespace": "default"}}, id="another namespace"),
        ],
    )
    async def test_a_body_that_contradicts_the_path_is_a_bad_request(
        self, api: Api, body: dict[str, Any]
    ):
        answer = await api.http.post(api.images(), json=api.body() | body)
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")

    async def test_a_custom_resource_of_another_kind_is_invalid(self, api: Api):
        answer = await api.http.post(api.images(), json=api.body() | {"kind": "Secret"})
        assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")
        assert answer.json()["message"] == (
            'Secret.longhorn.io "golden" is invalid: kind: Invalid value: "Secret": '
            "must be BackingImage"
        )

    async def test_a_core_object_of_another_kind_is_a_bad_request(self, api: Api):
        path = f"/api/v1/namespaces/{api.namespace}/configmaps"
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}}
        answer = await api.http.post(path, json=body)
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
        assert 'Secret in version "v1" cannot be handled as a ConfigMap' in answer.json()["message"]

    async def test_a_body_that_is_no_json_is_a_bad_request(self, api: Api):
        answer = await api.http.post(
            api.images(), content=b"{", headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")

    async def test_a_dry_run_answers_as_if_and_stores_nothing(self, api: Api):
        answer = await api.http.post(api.images(), json=api.body(), params={"dryRun": "All"})
        assert answer.status_code == 201
        assert answer.json()["metadata"]["uid"]
        assert await api.names() == []

    # ---- Update ---------------------------------------------------------------------------------

    async def test_generation_counts_changes_of_spec_only(self, api: Api):
        await api.create_image()
        labelled = await api.merge("golden", {"metadata": {"labels": {"a": "b"}}})
        assert labelled.metadata.generation == 1
        changed = await api.merge("golden", {"spec": {"nodeSelector": ["fast"]}})
        assert changed.metadata.generation == 2

    async def test_a_write_that_changes_nothing_keeps_the_version(self, api: Api):
        image = await api.create_image()
        again = await api.put(image)
        assert again.metadata.resourceVersion == image.metadata.resourceVersion

    async def test_an_outdated_write_conflicts(self, api: Api):
        outdated = await api.create_image()
        await api.merge("golden", {"spec": {"nodeSelector": ["fast"]}})
        outdated.spec["nodeSelector"] = ["slow"]
        async with refused(409, "Conflict") as error:
            await api.put(outdated)
        assert error.message == (
            'Operation cannot be fulfilled on backingimages.longhorn.io "golden": the object has '
            "been modified; please apply your changes to the latest version and try again"
        )

    async def test_a_custom_resource_is_replaced_with_its_version_only(self, api: Api):
        await api.create_image()
        async with refused(422, "Invalid") as error:
            await api.put(api.image())
        assert "metadata.resourceVersion" in error.causes

    async def test_a_core_object_may_be_replaced_blindly(self, api: Api):
        meta = ObjectMeta(name="c", namespace=api.namespace)
        await api.client.create(ConfigMap(metadata=meta, data={"a": "1"}))
        meta = ObjectMeta(name="c", namespace=api.namespace)
        replaced = await api.client.replace(ConfigMap(metadata=meta, data={"a": "2"}))
        assert replaced.data == {"a": "2"}

    async def test_a_patch_with_an_outdated_version_conflicts(self, api: Api):
        image = await api.create_image()
        await api.merge("golden", {"spec": {"nodeSelector": ["fast"]}})
        version = image.metadata.resourceVersion
        async with refused(409, "Conflict"):
            await api.merge("golden", {"metadata": {"resourceVersion": version}, "spec": {}})

    async def test_the_wrong_uid_conflicts(self, api: Api):
        image = await api.create_image()
        image["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000"
        async with refused(409, "Conflict"):
            await api.put(image)

    async def test_the_main_endpoint_ignores_status_and_the_status_endpoint_all_else(
        self, api: Api
    ):
        await api.create_image()
        image = await api.merge(
            "golden", {"status": {"size": 7}, "spec": {"nodeSelector": ["fast"]}}
        )
        assert not image.status
        observed = await api.client.patch(
            BackingImage.Status,
            "golden",
            {
                "status": {"size": 9},
                "spec": {"nodeSelector": ["slow"]},
                "metadata": {"labels": {"a": "b"}},
            },
            namespace=api.namespace,
            patch_type=PatchType.MERGE,
        )
        assert observed.status["size"] == 9
        image = await api.get_image()
        assert image.spec["nodeSelector"] == ["fast"]
        assert not image.metadata.labels
        assert image.metadata.generation == 2

    async def test_a_json_patch_is_all_or_nothing(self, api: Api):
        await api.create_image()
        operations: list[dict[str, Any]] = [
            {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}},
            {"op": "test", "path": "/spec/sourceType", "value": "upload"},
        ]
        with pytest.raises(ApiError) as caught:
            await api.client.patch(
                BackingImage,
                "golden",
                operations,
                namespace=api.namespace,
                patch_type=PatchType.JSON,
            )
        assert caught.value.status.code == 422
        assert not (await api.get_image()).metadata.labels
        operations[1]["value"] = "download"
        patched = await api.client.patch(
            BackingImage, "golden", operations, namespace=api.namespace, patch_type=PatchType.JSON
        )
        assert patched.metadata.labels == {"a": "b"}

    async def test_a_strategic_merge_patch_merges_lists_by_key_in_core_kinds(self, api: Api):
        maps = {}
        for name in ("first", "second", "owned"):
            meta = ObjectMeta(name=name, namespace=api.namespace)
            made: Any = await api.client.create(ConfigMap(metadata=meta))
            maps[name] = made.metadata.uid
        patched: Any = None
        for name in ("first", "second"):
            reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": maps[name]}
            patched = await api.client.patch(
                ConfigMap,
                "owned",
                {"metadata": {"ownerReferences": [reference]}},
                namespace=api.namespace,
                patch_type=PatchType.STRATEGIC,
            )
        assert {o.name for o in patched.metadata.ownerReferences} == {"first", "second"}

    async def test_a_strategic_merge_patch_of_a_custom_resource_is_unsupported(self, api: Api):
        await api.create_image()
        async with refused(415, "UnsupportedMediaType"):
            await api.client.patch(
                BackingImage, "golden", {}, namespace=api.namespace, patch_type=PatchType.STRATEGIC
            )

    async def test_many_writers_lose_no_update(self, api: Api):
        await api.create_image()

        async def count_up() -> None:
            while True:
                image = await api.get_image()
                counts = image.metadata.annotations or {}
                count = int(counts.get("count", "0")) + 1
                image["metadata"]["annotations"] = {"count": str(count)}
                try:
                    await api.put(image)
                except ApiError as exc:
                    if exc.status.code != 409:
                        raise
                else:
                    return

        await asyncio.gather(*(count_up() for _ in range(8)))
        assert (await api.get_image()).metadata.annotations == {"count": "8"}

    # ---- Delete ---------------------------------------------------------------------------------

    async def test_deletion_answers_with_the_uid_that_went(self, api: Api):
        image = await api.create_image()
        answer = await api.http.delete(api.images("golden"))
        assert answer.json()["status"] == "Success"
        assert answer.json()["details"] == {
            "name": "golden",
            "group": "longhorn.io",
            "kind": "backingimages",
            "uid": image.metadata.uid,
        }
        async with refused(404, "NotFound"):
            await api.client.delete(BackingImage, "golden", namespace=api.namespace)

    async def test_finalizers_hold_an_object_until_they_are_gone(self, api: Api):
        await api.create_image(finalizers=["longhorn.io/a", "longhorn.io/b"])
        await api.client.delete(BackingImage, "golden", namespace=api.namespace)
        image = await api.get_image()
        assert image.metadata.deletionTimestamp is not None
        await api.merge("golden", {"metadata": {"finalizers": ["longhorn.io/b"]}})
        assert (await api.get_image()).metadata.uid == image.metadata.uid
        async with refused(422, "Invalid"):
            await api.merge("golden", {"metadata": {"finalizers": ["longhorn.io/c"]}})
        await api.merge("golden", {"metadata": {"finalizers": None}})
        assert await api.is_gone(BackingImage, "golden")

    @pytest.mark.parametrize("member", ["uid", "resourceVersion"])
    async def test_preconditions_guard_a_deletion(self, api: Api, member: str):
        await api.create_image()
        answer = await api.http.request(
            "DELETE", api.images("golden"), json={"preconditions": {member: "12345678"}}
        )
        assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")
        message = answer.json()["message"]
        assert message.startswith(
            'Operation cannot be fulfilled on BackingImage.longhorn.io "golden": the '
        )
        assert "in the precondition (12345678) does not match the" in message
        assert await api.names() == ["golden"]

    async def test_a_collection_is_deleted_by_selector(self, api: Api):
        for name, colour in (("aa", "red"), ("bb", "red"), ("cc", "blue")):
            await api.create_image(name, labels={"colour": colour})
        await api.http.delete(api.images(), params={"labelSelector": "colour=red"})
        assert await api.names() == ["cc"]

    async def test_dependents_go_with_their_last_owner(self, api: Api):
        first, second = await api.create_image("first"), await api.create_image("second")
        await api.create_image("one", ownerReferences=[owner(first)])
        await api.create_image("both", ownerReferences=[owner(first), owner(second)])
        await api.client.delete(BackingImage, "first", namespace=api.namespace)
        assert await api.is_gone(BackingImage, "one")
        await api.until("both", lambda image: len(image.metadata.ownerReferences) == 1)
        await api.client.delete(BackingImage, "second", namespace=api.namespace)
        assert await api.is_gone(BackingImage, "both")

    async def test_a_dependent_of_an_owner_that_never_was_goes_too(self, api: Api):
        image = await api.create_image("ghost")
        await api.client.delete(BackingImage, "ghost", namespace=api.namespace)
        with contextlib.suppress(ApiError):
            await api.create_image("orphan", ownerReferences=[owner(image)])
        assert await api.is_gone(BackingImage, "orphan")

    async def test_foreground_deletion_waits_for_dependents(self, api: Api):
        image = await api.create_image()
        await api.create_image(
            "child",
            ownerReferences=[owner(image, blockOwnerDeletion=True)],
            finalizers=["longhorn.io/hold"],
        )
        await api.client.delete(
            BackingImage, "golden", namespace=api.namespace, cascade=CascadeType.FOREGROUND
        )
        assert (await api.get_image()).metadata.finalizers == ["foregroundDeletion"]
        await api.until("child", lambda image: image.metadata.deletionTimestamp is not None)
        await api.merge("child", {"metadata": {"finalizers": None}})
        assert await api.is_gone(BackingImage, "child")
        assert await api.is_gone(BackingImage, "golden")

    async def test_orphaned_dependents_stay(self, api: Api):
        image = await api.create_image()
        await api.create_image("child", ownerReferences=[owner(image)])
        await api.client.delete(
            BackingImage, "golden", namespace=api.namespace, cascade=CascadeType.ORPHAN
        )
        assert await api.is_gone(BackingImage, "golden")
        assert not (await api.get_image("child")).metadata.ownerReferences

    async def test_a_namespace_takes_its_objects_with_it(self, api: Api):
        name = f"{api.namespace}-x"
        await api.client.create(Namespace(metadata=ObjectMeta(name=name)))
        image = api.image()
        image.metadata.namespace = name
        image.metadata.finalizers = ["longhorn.io/hold"]
        await api.client.create(image)
        await api.client.delete(Namespace, name)
        namespace = await api.client.get(Namespace, name)
        assert namespace.status is not None
        assert namespace.status.phase == "Terminating"
        async with refused(403, "Forbidden") as error:
            await api.client.create(ConfigMap(metadata=ObjectMeta(name="c", namespace=name)))
        assert "it is being terminated" in error.message
        await api.client.patch(
            BackingImage,
            "golden",
            {"metadata": {"finalizers": None}},
            namespace=name,
            patch_type=PatchType.MERGE,
        )
        # A real controller looks again only after some seconds.
        assert await api.is_gone(Namespace, name, timeout_s=60)

    async def test_the_default_namespace_may_not_be_deleted(self, api: Api):
        async with refused(403, "Forbidden") as error:
            await api.client.delete(Namespace, "default")
        assert error.message == (
            'namespaces "default" is forbidden: this namespace may not be deleted'
        )

    # ---- Lists ----------------------------------------------------------------------------------

    async def test_lists_are_in_order_and_carry_a_version_to_watch_from(self, api: Api):
        for name in ("bb", "aa", "cc"):
            await api.create_image(name)
        listed = (await api.http.get(api.images())).json()
        assert listed["kind"] == "BackingImageList"
        assert [item["metadata"]["name"] for item in listed["items"]] == ["aa", "bb", "cc"]
        newest = max(int(item["metadata"]["resourceVersion"]) for item in listed["items"])
        assert int(listed["metadata"]["resourceVersion"]) >= newest

    @pytest.mark.parametrize(
        ("selector", "expected"),
        [
            ("colour=red", ["aa"]),
            ("colour==red", ["aa"]),
            ("colour!=red", ["bb", "cc"]),
            ("colour in (red, blue)", ["aa", "bb"]),
            ("colour notin (red)", ["bb", "cc"]),
            ("colour", ["aa", "bb"]),
            ("!colour", ["cc"]),
            ("colour,size=big", ["bb"]),
        ],
    )
    async def test_label_selectors_choose(self, api: Api, selector: str, expected: list[str]):
        await api.create_image("aa", labels={"colour": "red"})
        await api.create_image("bb", labels={"colour": "blue", "size": "big"})
        await api.create_image("cc")
        listed = await api.http.get(api.images(), params={"labelSelector": selector})
        assert [item["metadata"]["name"] for item in listed.json()["items"]] == expected

    async def test_field_selectors_choose_by_name(self, api: Api):
        await api.create_image("aa")
        await api.create_image("bb")
        assert await api.names(fields={"metadata.name": "bb"}) == ["bb"]
        assert await api.names(fields={"metadata.namespace": "other"}) == []

    async def test_a_field_that_is_not_selectable_is_a_bad_request(self, api: Api):
        async with refused(400, "BadRequest") as error:
            await api.names(fields={"spec.colour": "red"})
        assert "field label not supported: spec.colour" in error.message

    async def test_a_malformed_label_selector_is_a_bad_request(self, api: Api):
        answer = await api.http.get(api.images(), params={"labelSelector": "a in (b"})
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")

    async def test_pages_make_up_the_whole_list_at_one_version(self, api: Api):
        for name in FIVE:
            await api.create_image(name)
        names, versions, token = [], set(), ""
        remaining = []
        while True:
            query = {"limit": "2"} | ({"continue": token} if token else {})
            page = (await api.http.get(api.images(), params=query)).json()
            names += [item["metadata"]["name"] for item in page["items"]]
            versions.add(page["metadata"]["resourceVersion"])
            remaining.append(page["metadata"].get("remainingItemCount"))
            token = page["metadata"].get("continue", "")
            if not token:
                break
        assert names == FIVE
        assert len(versions) == 1
        assert remaining == [3, 1, None]
        assert await api.names(chunk_size=2) == FIVE

    async def test_an_invalid_continue_token_is_a_bad_request(self, api: Api):
        answer = await api.http.get(api.images(), params={"continue": "?"})
        assert answer.status_code == 400

    async def test_a_version_from_the_future_is_refused(self, api: Api):
        answer = await api.http.get(api.images(), params={"resourceVersion": "99999999999"})
        assert (answer.status_code, answer.json()["reason"]) == (504, "Timeout")
        assert "Too large resource version" in answer.json()["message"]

    async def test_a_list_over_all_namespaces_sees_each(self, api: Api):
        await api.create_image()
        found = api.client.list(BackingImage, namespace="*", fields={"metadata.name": "golden"})
        assert api.namespace in {image.metadata.namespace async for image in found}

    # ---- Watch ----------------------------------------------------------------------------------

    async def test_a_watch_goes_on_where_a_list_ended(self, api: Api):
        await api.create_image("before")
        version = (await api.http.get(api.images())).json()["metadata"]["resourceVersion"]
        await api.create_image("after")
        async with watching(api, api.images(), resourceVersion=version) as watch:
            assert await watch.next_named() == ("ADDED", "after")
            await api.merge("after", {"spec": {"nodeSelector": ["fast"]}})
            event = await watch.next()
            assert event["type"] == "MODIFIED"
            assert event["object"]["spec"]["nodeSelector"] == ["fast"]
            await api.client.delete(BackingImage, "before", namespace=api.namespace)
            event = await watch.next()
            assert event["type"] == "DELETED"
            assert event["object"]["metadata"]["name"] == "before"
            assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)

    @pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
    async def test_a_watch_from_nowhere_begins_with_what_is_there(
        self, api: Api, query: dict[str, str]
    ):
        await api.create_image("aa")
        await api.create_image("bb")
        async with watching(api, api.images(), **query) as watch:
            begun = {await watch.next_named(), await watch.next_named()}
            assert begun == {("ADDED", "aa"), ("ADDED", "bb")}
            await api.create_image("cc")
            assert await watch.next_named() == ("ADDED", "cc")

    async def test_streamed_initial_events_end_with_a_bookmark(self, api: Api):
        await api.create_image("aa")
        query = {
            "sendInitialEvents": "true",
            "allowWatchBookmarks": "true",
            "resourceVersionMatch": "NotOlderThan",
        }
        async with watching(api, api.images(), **query) as watch:
            assert await watch.next_named() == ("ADDED", "aa")
            event = await watch.next()
            assert event["type"] == "BOOKMARK"
            annotations = event["object"]["metadata"]["annotations"]
            assert annotations == {"k8s.io/initial-events-end": "true"}

    async def test_entering_and_leaving_a_selection_is_added_and_deleted(self, api: Api):
        async with watching(api, api.images(), labelSelector="colour=red") as watch:
            await api.create_image("blue", labels={"colour": "blue"})
            await api.merge("blue", {"metadata": {"labels": {"colour": "red"}}})
            assert await watch.next_named() == ("ADDED", "blue")
            await api.merge("blue", {"spec": {"nodeSelector": ["fast"]}})
            assert await watch.next_named() == ("MODIFIED", "blue")
            await api.merge("blue", {"metadata": {"labels": {"colour": "green"}}})
            assert await watch.next_named() == ("DELETED", "blue")
            await api.client.delete(BackingImage, "blue", namespace=api.namespace)
            await api.create_image("red", labels={"colour": "red"})
            assert await watch.next_named() == ("ADDED", "red")

    async def test_a_watch_of_one_name_sees_nothing_else(self, api: Api):
        async with watching(api, api.images(), fieldSelector="metadata.name=bb") as watch:
            await api.create_image("aa")
            await api.create_image("bb")
            assert await watch.next_named() == ("ADDED", "bb")

    async def test_a_watch_ends_at_its_timeout(self, api: Api):
        version = (await api.http.get(api.images())).json()["metadata"]["resourceVersion"]
        query = {"resourceVersion": version, "timeoutSeconds": "1"}
        async with watching(api, api.images(), **query) as watch:
            assert await watch.is_over()

    async def test_the_typed_client_watches(self, api: Api):
        await api.create_image("aa")
        seen = []
        async with asyncio.timeout(DEADLINE_S):
            watch = api.client.watch(BackingImage, namespace=api.namespace, server_timeout=20)
            async for event, image in watch:
                seen.append((event, image.metadata.name))
                if len(seen) == 1:  # only now is it certain that the watch is there
                    await api.create_image("bb")
                    await api.client.delete(BackingImage, "bb", namespace=api.namespace)
                if len(seen) == 3:
                    break
        assert seen == [("ADDED", "aa"), ("ADDED", "bb"), ("DELETED", "bb")]

    # ---- Tables ---------------------------------------------------------------------------------

    async def test_a_table_has_the_columns_of_the_crd(self, api: Api):
        await api.create_image()
        table = (await api.http.get(api.images(), headers={"Accept": TABLE})).json()
        assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
        names = [column["name"] for column in table["columnDefinitions"]]
        assert names[:5] == ["Name", "UUID", "SourceType", "Size", "VirtualSize"]
        (row,) = table["rows"]
        assert row["cells"][:3] == ["golden", None, "download"]
        assert row["object"]["kind"] == "PartialObjectMetadata"
        assert row["object"]["metadata"]["name"] == "golden"

    async def test_a_watch_can_be_a_table_too(self, api: Api):
        async with watching(api, api.images(), accept=TABLE) as watch:
            await api.create_image()
            event = await watch.next()
            assert event["type"] == "ADDED"
            assert event["object"]["kind"] == "Table"
            assert event["object"]["rows"][0]["cells"][0] == "golden"

    async def test_metadata_alone_can_be_asked_for(self, api: Api):
        await api.create_image(labels={"a": "b"})
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        listed = (await api.http.get(api.images(), headers={"Accept": accept})).json()
        assert listed["kind"] == "PartialObjectMetadataList"
        assert listed["items"][0]["metadata"]["labels"] == {"a": "b"}
        assert "spec" not in listed["items"][0]

    # ---- Kinds with rules of their own ----------------------------------------------------------

    async def test_a_claim_starts_pending_with_defaults(self, api: Api):
        claim = PersistentVolumeClaim(
            metadata=ObjectMeta(name="c", namespace=api.namespace),
            spec=PersistentVolumeClaimSpec(
                accessModes=["ReadWriteOnce"],
                storageClassName="longhorn",
                resources=VolumeResourceRequirements(requests={"storage": "1Gi"}),
            ),
        )
        made = await api.client.create(claim)
        assert made.status is not None
        assert made.spec is not None
        assert made.status.phase == "Pending"
        assert made.spec.volumeMode == "Filesystem"

    async def test_a_claim_without_a_class_gets_the_default_class(self, api: Api):
        made = await api.create_class(
            annotations={"storageclass.kubernetes.io/is-default-class": "true"}
        )
        claim = PersistentVolumeClaim(
            metadata=ObjectMeta(name="c", namespace=api.namespace),
            spec=PersistentVolumeClaimSpec(
                accessModes=["ReadWriteOnce"],
                resources=VolumeResourceRequirements(requests={"storage": "1Gi"}),
            ),
        )
        stored = await api.client.create(claim)
        assert stored.spec is not None
        assert stored.spec.storageClassName == made.metadata.name

    async def test_plain_secret_data_is_encoded(self, api: Api):
        secret = Secret(
            metadata=ObjectMeta(name="s", namespace=api.namespace), stringData={"a": "b"}
        )
        made = await api.client.create(secret)
        assert made.data == {"a": "Yg=="}
        assert made.stringData is None

    # ---- Reviews: who is this, and may they -----------------------------------------------------

    async def test_a_token_review_names_the_user_of_a_token(self, api: Api):
        token = api.http.headers["Authorization"].removeprefix("Bearer ")
        answer = await api.review("authentication.k8s.io", "TokenReview", {"token": token})
        assert answer.status_code == 201
        told = answer.json()["status"]
        assert told["authenticated"] is True
        assert told["user"]["username"]

    async def test_a_token_review_of_nobodys_token_says_so_and_is_no_error(self, api: Api):
        answer = await api.review("authentication.k8s.io", "TokenReview", {"token": "nobodys"})
        assert answer.status_code == 201
        assert not answer.json()["status"].get("authenticated")

    async def test_a_token_review_without_a_token_is_refused(self, api: Api):
        answer = await api.review("authentication.k8s.io", "TokenReview", {})
        assert answer.status_code in (400, 422)

    async def test_who_may_do_everything_is_told_so(self, api: Api):
        attributes = {"verb": "delete", "group": "longhorn.io", "resource": "backingimages"}
        spec = {"resourceAttributes": {**attributes, "namespace": api.namespace, "name": "golden"}}
        answer = await api.review("authorization.k8s.io", "SelfSubjectAccessReview", spec)
        assert answer.status_code == 201
        assert answer.json()["status"]["allowed"] is True
        assert answer.json()["spec"] == spec

    async def test_an_access_review_of_nothing_is_refused(self, api: Api):
        answer = await api.review("authorization.k8s.io", "SelfSubjectAccessReview", {})
        assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")

    async def test_reviews_are_created_and_never_stored(self, api: Api):
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        assert (await api.http.get(path)).status_code == 405
        assert (await api.http.get("/apis/authorization.k8s.io")).json()["kind"] == "APIGroup"
        resources = (await api.http.get("/apis/authentication.k8s.io/v1")).json()["resources"]
        assert "create" in {e["name"]: e for e in resources}["tokenreviews"]["verbs"]

    # ---- The protocol ---------------------------------------------------------------------------

    async def test_a_wrong_token_is_unauthorized(self, api: Api):
        answer = await api.http.get(api.images(), headers={"Authorization": "Bearer wrong-token"})
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")

    async def test_an_unknown_resource_is_not_found(self, api: Api):
        assert (await api.http.get("/apis/longhorn.io/v1beta2/nothings")).status_code == 404

    async def test_a_method_that_a_resource_lacks_is_not_allowed(self, api: Api):
        answer = await api.http.post("/api/v1/persistentvolumeclaims", json={})
        assert (answer.status_code, answer.json()["reason"]) == (405, "MethodNotAllowed")

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    async def test_custom_resources_of_all_namespaces_can_only_be_read(self, api: Api, method: str):
        everywhere = "/apis/longhorn.io/v1beta2/backingimages"
        assert (await api.http.request(method, everywhere)).status_code == 404

    async def test_discovery_lists_groups_versions_and_resources(self, api: Api):
        groups = (await api.http.get("/apis")).json()["groups"]
        assert {"longhorn.io", "shorthorn.io", "snapshot.storage.k8s.io", "storage.k8s.io"} <= {
            group["name"] for group in groups
        }
        resources = (await api.http.get("/apis/longhorn.io/v1beta2")).json()["resources"]
        names = {entry["name"]: entry for entry in resources}
        assert names["backingimages"]["shortNames"] == ["lhbi"]
        assert "watch" in names["backingimages"]["verbs"]
        assert "backingimages/status" in names
        core = (await api.http.get("/api/v1")).json()["resources"]
        assert "persistentvolumeclaims" in {entry["name"] for entry in core}

    async def test_the_version_can_be_read_by_any_client(self, api: Api):
        version = (await api.http.get("/version")).json()
        assert version["major"] == "1"
        assert version["gitVersion"].startswith("v1.")
