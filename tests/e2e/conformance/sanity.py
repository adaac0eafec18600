"""One run of csi-sanity against one CSI socket, and what it says.

Owns its command line and the reading of its report. Must never: judge what may be skipped; that
is `reasons`. Called by the suite's `__main__`, and by the
cluster's tests.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / ".cache" / "e2e" / "bin" / "csi-sanity"
#: Small, so that a pool of a few GiB holds all volumes of a run at once.
VOLUME_BYTES = 320 << 20
EXPANDED_BYTES = 400 << 20
RUN_S_MAX = 300.0


@dataclass(frozen=True)
class Spec:
    """What became of one of csi-sanity's tests; `message` says why it failed or was skipped."""

    name: str
    state: str
    message: str


@dataclass(frozen=True)
class Report:
    """The tests of one run, and all that csi-sanity printed."""

    specs: tuple[Spec, ...]
    output: str

    def of(self, state: str) -> list[Spec]:
        return [spec for spec in self.specs if spec.state == state]

    @property
    def failed(self) -> list[Spec]:
        """Whatever did not end well: failed, panicked, timed out, interrupted."""
        fine = ("passed", "skipped", "pending")
        return [spec for spec in self.specs if spec.state not in fine]


def run(
    socket: Path,
    scratch: Path,
    *,
    access: str,
    parameters: dict[str, str],
    controller: Path | None = None,
) -> Report:
    """Run all of csi-sanity; files of its own are made below `scratch`, which it leaves empty.

    Args: controller: the socket of the controller half, where `socket` is not its own as well.
    """
    snapshot = scratch / "snapshot.json"
    snapshot.write_text(json.dumps(parameters))
    report = scratch / "report.json"
    command = [
        str(PROGRAM),
        f"-csi.endpoint=unix://{socket}",
        f"-csi.controllerendpoint=unix://{controller or socket}",
        f"-csi.stagingdir={scratch / 'staging'}",
        f"-csi.mountdir={scratch / 'target'}",
        f"-csi.testvolumeaccesstype={access}",
        f"-csi.testsnapshotparameters={snapshot}",
        f"-csi.testvolumesize={VOLUME_BYTES}",
        f"-csi.testvolumeexpandsize={EXPANDED_BYTES}",
        "-ginkgo.no-color",
        f"-ginkgo.timeout={int(RUN_S_MAX)}s",
        f"-ginkgo.json-report={report}",
    ]
    said = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=RUN_S_MAX + 30,
        text=True,
        check=False,
    )
    specs = tuple(read(json.loads(report.read_text()))) if report.exists() else ()
    if not specs or (said.returncode != 0) != any(s for s in Report(specs, "").failed):
        specs = (*specs, Spec("csi-sanity itself", "failed", f"ended with {said.returncode}"))
    return Report(specs, said.stdout)


def read(suites: list[dict[str, Any]]) -> list[Spec]:
    """Return the tests of ginkgo's report; the suite's set-up counts where it failed."""
    specs = []
    for suite in suites:
        for entry in suite["SpecReports"] or []:
            if entry["LeafNodeType"] == "It" or entry["State"] not in ("passed", "skipped"):
                words = [*(entry["ContainerHierarchyTexts"] or []), entry["LeafNodeText"]]
                message = (entry.get("Failure") or {}).get("Message", "")
                specs.append(Spec(" › ".join(words), entry["State"], message))
    return specs
