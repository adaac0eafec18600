"""Builds the CSI message classes and stubs from proto/csi.proto, and brings htmx.

hatchling calls the hook for wheels and editable installations; `make generate` runs this file as a
program. Either way `shorthorn.csi.proto` and `shorthorn/web/static/vendor` appear below src/,
ignored by git: what a tool can make, or a registry has, is not kept by hand. Nothing at run time
calls this module.
"""

from __future__ import annotations

import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "shorthorn/csi/proto"
PACKAGE_DOCSTRING = (
    '"""CSI 1.13 messages and stubs, generated from proto/csi.proto. Do not edit."""\n'
)
VENDOR = "shorthorn/web/static/vendor"
#: By the name that pages load: the file of django-htmx, which carries htmx's own builds.
HTMX_FILES = {
    "htmx.min.js": "django_htmx/static/django_htmx/htmx-2.min.js",
    "htmx-sse.min.js": "django_htmx/static/django_htmx/ext/hx-sse-2.min.js",
}


def bring_htmx(root: Path) -> None:
    """Copy htmx and its extension for event streams below `root`/src, where pages load them.

    The package is looked up, not imported: importing it needs Django, which is not installed.
    """
    package = metadata.distribution("django-htmx")
    folder = root / "src" / VENDOR
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in HTMX_FILES.items():
        (folder / name).write_bytes(Path(str(package.locate_file(source))).read_bytes())


def generate(root: Path) -> None:
    """Write the package `shorthorn.csi.proto` below `root`/src: messages, stubs and their types.

    Raises: RuntimeError: protoc refused the file; it has said why on stderr.
    State:  a failure leaves the previous files in place; may be repeated.
    """
    with tempfile.NamedTemporaryFile(suffix=".descriptors") as descriptors:
        _run_protoc(root, descriptors_path=descriptors.name)
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(descriptors.name).read_bytes())
    package = root / "src" / PACKAGE
    (package / "__init__.py").write_text(PACKAGE_DOCSTRING)
    (package / "csi_pb2_grpc.pyi").write_text(_stub_types(files.file[0]))


def _run_protoc(root: Path, *, descriptors_path: str) -> None:
    """Give protoc the proto directory under the Python package's name.

    So the generated modules import each other by their full names and need no rewriting.
    """
    (root / "src" / PACKAGE).mkdir(parents=True, exist_ok=True)
    exit_code = protoc.main(
        [
            "protoc",
            f"--proto_path={PACKAGE}={root / 'proto'}",
            f"--proto_path={resources.files('grpc_tools') / '_proto'}",
            f"--descriptor_set_out={descriptors_path}",
            f"--python_out={root / 'src'}",
            f"--pyi_out={root / 'src'}",
            f"--grpc_python_out={root / 'src'}",
            f"{PACKAGE}/csi.proto",
        ]
    )
    if exit_code != 0:
        message = f"protoc exited with {exit_code} on proto/csi.proto"
        raise RuntimeError(message)


def _stub_types(file: descriptor_pb2.FileDescriptorProto) -> str:
    """Type csi_pb2_grpc for grpc.aio: protoc types the messages but not the services."""
    lines = [
        "from collections.abc import AsyncIterator",
        "",
        "import grpc",
        "import grpc.aio",
        "",
        "from shorthorn.csi.proto import csi_pb2",
    ]
    for service in file.service:
        calls = [_call_types(method) for method in service.method]
        lines += ["", f"class {service.name}Stub:"]
        lines += ["    def __init__(self, channel: grpc.aio.Channel) -> None: ..."]
        lines += [f"    {name}: {multi_callable}" for name, multi_callable, _ in calls]
        lines += ["", f"class {service.name}Servicer:"]
        lines += [f"    {definition}" for _, _, definition in calls]
        lines += ["", f"def add_{service.name}Servicer_to_server("]
        lines += [f"    servicer: {service.name}Servicer, server: grpc.aio.Server"]
        lines += [") -> None: ..."]
    return "\n".join(lines) + "\n"


def _call_types(method: descriptor_pb2.MethodDescriptorProto) -> tuple[str, str, str]:
    """Return the method's name, its type on the client and its definition on the server."""
    request = "csi_pb2." + method.input_type.rsplit(".", 1)[-1]
    response = "csi_pb2." + method.output_type.rsplit(".", 1)[-1]
    if method.server_streaming:
        client, definition, returned = "UnaryStream", "def", f"AsyncIterator[{response}]"
    else:
        client, definition, returned = "UnaryUnary", "async def", response
    context = f"grpc.aio.ServicerContext[{request}, {response}]"
    return (
        method.name,
        f"grpc.aio.{client}MultiCallable[{request}, {response}]",
        f"{definition} {method.name}(self, request: {request}, context: {context})"
        f" -> {returned}: ...",
    )


class CsiProtoBuildHook(BuildHookInterface[Any]):
    """hatchling's way in; named in pyproject.toml under [tool.hatch.build.hooks.custom]."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate before hatchling collects the files."""
        generate(Path(self.root))
        bring_htmx(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
    bring_htmx(Path(__file__).resolve().parent)
