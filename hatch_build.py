"""Builds the CSI message classes and stubs from proto/csi.proto.

hatchling calls the hook for wheels and editable installations; `make generate` runs this file as a
program. Either way `shorthorn.csi.proto` appears below src/, ignored by git: what a tool can make
is not kept by hand. Nothing at run time calls this module.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "shorthorn/csi/proto"
PACKAGE_DOCSTRING = '''"""Messages and stubs of CSI 1.13, generated from proto/csi.proto. Do not edit."""\n'''


def generate(root: Path) -> None:
    """Write csi_pb2.py, csi_pb2.pyi and csi_pb2_grpc.py into src/shorthorn/csi/proto.

    The proto directory is given to protoc under the Python package's name, so that the generated
    modules import each other by their full names and need no rewriting afterwards.

    Raises: RuntimeError: protoc refused the file; it has said why on stderr.
    State:  a failure leaves the previous files in place; may be repeated.
    """
    target = root / "src" / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    (target / "__init__.py").write_text(PACKAGE_DOCSTRING)
    well_known_types = str(resources.files("grpc_tools") / "_proto")
    exit_code = protoc.main(
        [
            "protoc",
            f"--proto_path={PACKAGE}={root / 'proto'}",
            f"--proto_path={well_known_types}",
            f"--python_out={root / 'src'}",
            f"--pyi_out={root / 'src'}",
            f"--grpc_python_out={root / 'src'}",
            f"{PACKAGE}/csi.proto",
        ]
    )
    if exit_code != 0:
        message = f"protoc exited with {exit_code} on proto/csi.proto"
        raise RuntimeError(message)


class CsiProtoBuildHook(BuildHookInterface[Any]):
    """hatchling's way in; named in pyproject.toml under [tool.hatch.build.hooks.custom]."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate before hatchling collects the files."""
        generate(Path(self.root))


if __name__ == "__main__":
    sys.exit(generate(Path(__file__).resolve().parent))
