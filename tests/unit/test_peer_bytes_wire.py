"""Errors of the domain keep their meaning from a node to whoever asked it, whatever is in them."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.domain import errors
from shorthorn.domain.image_bytes import Artifact, UploadState
from shorthorn.images import peer_bytes_wire as wire

HEADER_BYTES_MAX = 8190

EVERY = [
    errors.InvalidArgument("range", "is not had in parts"),
    errors.NotFound("image", "golden", "it is not ready"),
    errors.InUse("upload", "golden", "another connection"),
    errors.OffsetMismatch("golden", 12345, 99),
    errors.SizeOutOfRange("upload of golden", 12, maximum_bytes=10),
    errors.NoSpace("/pool", 10, 3),
    errors.Unavailable("pool", "it is away"),
    errors.ImageFailed("golden", "the upload was given up"),
    errors.ChecksumMismatch("golden", "a" * 128, "b" * 128),
    errors.ImageRejected("golden", "it is a VMDK image"),
    errors.Corrupt("image", "golden", "it cannot be read"),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda e: type(e).__name__)
def test_an_error_arrives_as_what_it_was(error: errors.DomainError) -> None:
    arrived = wire.decode_error(wire.encode_error(error), "node-a")
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_an_error_that_only_the_node_understands_is_unavailable() -> None:
    arrived = wire.decode_error(wire.encode_error(errors.OperationPending("x")), "node-a")
    assert isinstance(arrived, errors.Unavailable)
    assert "node-a" in str(arrived)
    assert "still running" in str(arrived)


@given(text=st.text(max_size=5000), other=st.text(max_size=5000))
def test_no_text_breaks_a_header(text: str, other: str) -> None:
    for error in (errors.ImageRejected(text, other), errors.NotFound(text, other, text)):
        header = wire.encode_error(error)
        assert header.isascii()
        assert header.isprintable()
        assert len(header) < HEADER_BYTES_MAX
        assert type(wire.decode_error(header, "n")) is type(error)


@given(st.text())
def test_garbage_is_an_error_too(text: str) -> None:
    assert isinstance(wire.decode_error(text, "n"), errors.Unavailable)
    with pytest.raises(errors.Unavailable):
        wire.decode_state("}" + text, "n")


@pytest.mark.parametrize("field", ["offset_bytes", "kind"])
def test_an_error_without_what_makes_its_meaning_is_not_believed(field: str) -> None:
    told = json.loads(wire.encode_error(errors.OffsetMismatch("golden", 1, 2)))
    for wrong in ({}, {field: None}, {field: "x" if field == "offset_bytes" else 7}):
        fields = {k: v for k, v in told["fields"].items() if k != field} | wrong
        arrived = wire.decode_error(json.dumps({**told, "fields": fields}), "n")
        assert isinstance(arrived, errors.Unavailable)


def test_states_and_artifacts_arrive_as_they_were() -> None:
    state = UploadState(3, 9)
    assert wire.decode_state(wire.encode_state(state), "n") == state
    for artifact in (Artifact(None, "", "golden.raw.zst"), Artifact(7, "ab", "göld\U0001f404.raw")):
        assert wire.decode_artifact(wire.encode_artifact(artifact), "n") == artifact


def test_every_error_of_the_port_is_known_to_the_wire() -> None:
    from shorthorn.domain.image_bytes import ImageBytes

    promised = inspect.getsource(ImageBytes)
    known = {kind.__name__ for kind in wire._FIELDS}
    named = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert {name for name in named if f"{name}:" in promised or f"{name}," in promised} <= known
