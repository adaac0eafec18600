"""proto/csi.proto against the wire facts of CSI 1.13, both ways.

The table in data/csi-1.13-wire.txt was decoded from the descriptor that other implementations use.
A wrong number or type is an error that nobody would see: the sidecar would just read nonsense.
Table and descriptors are both brought to one form, a set of sentences, and the sets are compared.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from shorthorn.csi.proto import csi_pb2

WIRE_FACTS = Path(__file__).parent / "data" / "csi-1.13-wire.txt"
ONEOFS = {
    "ControllerServiceCapability.type": ["rpc"],
    "GroupControllerServiceCapability.type": ["rpc"],
    "NodeServiceCapability.type": ["rpc"],
    "PluginCapability.type": ["service", "volume_expansion"],
    "VolumeCapability.access_type": ["block", "mount"],
    "VolumeContentSource.type": ["snapshot", "volume"],
}
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
}


def test_every_wire_fact_holds_in_our_interface() -> None:
    assert sorted(facts_of_table(WIRE_FACTS.read_text()) - facts_of_descriptors()) == []


def test_our_interface_holds_nothing_beyond_the_wire_facts() -> None:
    assert sorted(facts_of_descriptors() - facts_of_table(WIRE_FACTS.read_text())) == []


def test_the_table_is_read_whole() -> None:
    facts = facts_of_table(WIRE_FACTS.read_text())
    count = {kind: sum(fact.startswith(kind) for fact in facts) for kind in ("rpc", "service")}
    assert count == {"rpc": 36, "service": 5}
    assert "field CreateVolumeRequest.secrets = 5: repeated map [secret]" in facts
    assert "field NodeGetInfoResponse.max_volumes_per_node = 2: int64" in facts
    assert "value PluginCapability.VolumeExpansion.Type.OFFLINE = 2" in facts
    assert "value VolumeHealthErrorType.DATA_LOSS = 3" in facts


def test_a_changed_number_type_or_mark_is_a_difference() -> None:
    text = WIRE_FACTS.read_text()
    ours = facts_of_descriptors()
    for good, bad in [
        ("int64 capacity_bytes=1", "int64 capacity_bytes=9"),
        ("int64 max_volumes_per_node=2", "int32 max_volumes_per_node=2"),
        ("SecretsEntry secrets=2 [secret]", "SecretsEntry secrets=2"),
        ("repeated string mount_flags=2", "string mount_flags=2"),
        ("CLONE_VOLUME=7", "CLONE_VOLUME=8"),
        ("rpc GetSnapshot  [ALPHA]", "rpc GetSnapshot  "),
    ]:
        assert good in text
        assert facts_of_table(text.replace(good, bad, 1)) - ours


def test_alternatives_are_oneofs() -> None:
    ours = {
        f"{relative(oneof.containing_type.full_name)}.{oneof.name}": [f.name for f in oneof.fields]
        for message in all_messages()
        for oneof in message.oneofs
    }
    assert ours == ONEOFS


def test_maps_are_maps_of_strings() -> None:
    for message in all_messages():
        for field in message.fields:
            if is_map(field):
                assert field.message_type is not None
                types = {entry.type for entry in field.message_type.fields}
                assert types == {FieldDescriptor.TYPE_STRING}


def test_bytes_on_the_wire_are_those_of_other_implementations() -> None:
    request = csi_pb2.CreateSnapshotRequest(
        source_volume_id="pvc-1", name="snapshot-2", parameters={"type": "bi"}
    )
    expected = b"\x0a\x05pvc-1" + b"\x12\x0asnapshot-2" + b"\x22\x0a\x0a\x04type\x12\x02bi"
    assert request.SerializeToString(deterministic=True) == expected


def test_services_have_the_names_that_sidecars_call() -> None:
    services = {s.full_name for s in csi_pb2.DESCRIPTOR.services_by_name.values()}
    assert {"csi.v1.Identity", "csi.v1.Controller", "csi.v1.Node"} <= services


def facts_of_table(text: str) -> set[str]:
    """Read the table; nesting is by indentation of two spaces."""
    facts: set[str] = set()
    service = ""
    message: list[str] = []
    for line in filter(str.strip, text.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        words = line.split()
        alpha = " [alpha]" if "[ALPHA]" in words else ""
        if words[0] == "service":
            service = words[1]
            facts.add(f"service {service}{alpha}")
        elif words[0] == "rpc":
            stream = " stream" if "stream" in words else ""
            facts.add(f"rpc {service}.{words[1]}{stream}{alpha}")
        elif words[0] == "message":
            message = [*message[:depth], words[1]]
            facts.add(f"message {'.'.join(message)}{alpha}")
        elif words[0] == "enum" and depth == 0:
            for name, number in ast.literal_eval(line.split(maxsplit=2)[2]):
                facts.add(f"value {words[1]}.{name} = {number}")
        elif words[0] == "enum":
            name = ".".join([*message[:depth], words[1].rstrip(":")])
            for value in line.split(": ", 1)[1].split(", "):
                facts.add("value " + f"{name}.{value}".replace("=", " = ").replace("[", " ["))
        else:
            facts.add(field_fact(".".join(message[:depth]), line.strip()))
    return facts


def field_fact(message: str, line: str) -> str:
    """Read one line like `repeated .csi.v1.Topology requisite=1 [alpha]`."""
    match = re.fullmatch(r"(repeated )?(\S+) (\w+)=(\d+)((?: \[\w+\])*)", line)
    assert match, line
    repeated, type_name, name, number, marks = match.groups("")
    entry = "".join(word.capitalize() for word in name.split("_")) + "Entry"
    is_map_type = type_name == f".csi.v1.{message}.{entry}" and repeated
    type_name = "map" if is_map_type else type_name.removeprefix(".csi.v1.").lstrip(".")
    return f"field {message}.{name} = {number}: {repeated}{type_name}{marks}"


def facts_of_descriptors() -> set[str]:
    """Say of our own descriptors what the table says of theirs."""
    file = csi_pb2.DESCRIPTOR
    facts: set[str] = set()
    for service in file.services_by_name.values():
        alpha = mark(service, csi_pb2.alpha_service, "alpha")
        facts.add(f"service {service.name}{alpha}")
        for method in service.methods:
            assert method.input_type.full_name == f"csi.v1.{method.name}Request"
            assert method.output_type.full_name == f"csi.v1.{method.name}Response"
            assert not method.client_streaming
            stream = " stream" if method.server_streaming else ""
            alpha = mark(method, csi_pb2.alpha_method, "alpha")
            facts.add(f"rpc {service.name}.{method.name}{stream}{alpha}")
    for message in all_messages():
        alpha = mark(message, csi_pb2.alpha_message, "alpha")
        facts.add(f"message {relative(message.full_name)}{alpha}")
        facts.update(fact_of_field(field) for field in message.fields)
    for enum in all_enums():
        for value in enum.values:
            alpha = mark(value, csi_pb2.alpha_enum_value, "alpha")
            facts.add(f"value {relative(enum.full_name)}.{value.name} = {value.number}{alpha}")
    return facts


def fact_of_field(field: FieldDescriptor) -> str:
    if is_map(field):
        type_name = "map"
    elif field.message_type is not None:
        type_name = relative(field.message_type.full_name)
    elif field.enum_type is not None:
        type_name = relative(field.enum_type.full_name)
    else:
        type_name = SCALARS[field.type]
    marks = mark(field, csi_pb2.alpha_field, "alpha") + mark(field, csi_pb2.csi_secret, "secret")
    repeated = "repeated " if field.is_repeated else ""
    return f"field {relative(field.full_name)} = {field.number}: {repeated}{type_name}{marks}"


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def mark(descriptor: Any, extension: Any, word: str) -> str:
    return f" [{word}]" if descriptor.GetOptions().Extensions[extension] else ""


def relative(full_name: str) -> str:
    return full_name.removeprefix("csi.v1.")


def all_messages() -> Iterator[Descriptor]:
    waiting = list(csi_pb2.DESCRIPTOR.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        yield message
        waiting += [m for m in message.nested_types if not m.GetOptions().map_entry]


def all_enums() -> Iterator[EnumDescriptor]:
    yield from csi_pb2.DESCRIPTOR.enum_types_by_name.values()
    for message in all_messages():
        yield from message.enum_types
