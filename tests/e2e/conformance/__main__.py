"""The conformance suite: csi-sanity on each kind of pool, access type and snapshot parameters.

Owns the pools, the services on them, and what is printed. Whatever was skipped is printed with its
reason, and whatever a run leaves behind is a failure. Called by `scripts/conformance`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.conformance import reasons, sanity
from tests.e2e.conformance.leftovers import left_behind
from tests.e2e.conformance.sanity import Report
from tests.integration import storage
from tests.integration.daemon_process import ServiceProcess, running

ACCESS_TYPES = ("mount", "block")
PARAMETERS: dict[str, dict[str, str]] = {
    "type: snap": {"type": "snap"},
    "type: bi": {"type": "bi"},
    "type: bi, export-type: qcow2": {"type": "bi", "export-type": "qcow2"},
    "no parameters": {},
}
_PRINTING = threading.Lock()


@dataclass(frozen=True)
class Run:
    """One run of csi-sanity: what it ran on, and what came out."""

    title: str
    report: Report
    complaints: tuple[str, ...]
    took_s: float

    def line(self) -> str:
        count = {s: len(self.report.of(s)) for s in ("passed", "skipped", "pending")}
        return (
            f"{self.title:<54} {count['passed']} passed, {self.failures} failed, "
            f"{count['skipped']} skipped, {count['pending']} pending in {self.took_s:.1f} s"
        )

    @property
    def failures(self) -> int:
        return len(self.report.failed) + len(self.complaints)


def main() -> int:
    arguments = argparse.ArgumentParser(prog="make conformance", description=__doc__)
    arguments.add_argument("--only", default="", help="the runs whose title holds this text")
    only: str = arguments.parse_args().only
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    with ThreadPoolExecutor(len(POOLS)) as threads:
        started = [threads.submit(run_on, name, pool, only) for name, pool in POOLS.items()]
        runs = [run for future in started for run in future.result()]
    explain(runs)
    passed = sum(len(run.report.of("passed")) for run in runs)
    skipped = sum(len(run.report.of("skipped")) for run in runs)
    failed = sum(run.failures for run in runs)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


@contextlib.contextmanager
def pool_file(scratch: Path) -> Iterator[ServiceProcess]:
    """A service whose pool is a file with XFS, as on a host without reflinks."""
    with running(scratch / "data", pool_size="3G") as service:
        yield service


@contextlib.contextmanager
def btrfs_directory(scratch: Path) -> Iterator[ServiceProcess]:
    """A service whose pool is a directory on btrfs."""
    with (
        storage.mounted(storage.BTRFS, scratch, size_bytes=4 * storage.GIB) as mounted,
        running(mounted / "data") as service,
    ):
        yield service


POOLS: dict[str, Callable[[Path], contextlib.AbstractContextManager[ServiceProcess]]] = {
    "pool file (XFS)": pool_file,
    "directory on btrfs": btrfs_directory,
}


def run_on(
    name: str, pool: Callable[[Path], contextlib.AbstractContextManager[ServiceProcess]], only: str
) -> list[Run]:
    """Run csi-sanity in all ways on one pool."""
    ways = [
        (f"{name}, {access}, {words}", access, parameters)
        for access in ACCESS_TYPES
        for words, parameters in PARAMETERS.items()
        if only in f"{name}, {access}, {words}"
    ]
    if not ways:
        return []
    # Not below a longer path: that of a socket has 107 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="shorthorn-sanity-"))
    try:
        with pool(scratch) as service:
            return [run_one(service, scratch / str(i), *way) for i, way in enumerate(ways)]
    finally:
        shutil.rmtree(scratch)


def run_one(
    service: ServiceProcess, scratch: Path, title: str, access: str, parameters: dict[str, str]
) -> Run:
    scratch.mkdir()
    started = time.monotonic()
    socket = service.data_dir / "csi.sock"
    report = sanity.run(socket, scratch, access=access, parameters=parameters)
    took_s = time.monotonic() - started
    left = left_behind(service.api, service.data_dir)
    complaints = (*reasons.complaints(report.specs), *left, *tracebacks(service))
    run = Run(title, report, complaints, took_s)
    with _PRINTING:
        if run.failures:
            print(report.output)
            for spec in report.failed:
                print(f"{spec.state}: {spec.name}: {spec.message}")
            for complaint in complaints:
                print(complaint)
        print(run.line(), flush=True)
    return run


def tracebacks(service: ServiceProcess) -> list[str]:
    """Say if the service met an error that nobody foresaw."""
    text = service.log.read_text(errors="replace")
    return [f"the service's log has a traceback:\n{text}"] if "Traceback" in text else []


def explain(runs: list[Run]) -> None:
    """Print each test that did not run, with its reason, once for all runs."""
    print("\nSkipped, because Shorthorn does not announce it (in each run):")
    for reason in reasons.SKIPPED:
        print(f"  {reason.count:2} {reason.topic}: {reason.why}")
        found = {s.name: s.message for run in runs for s in run.report.specs if reason.explains(s)}
        for name, message in sorted(found.items()):
            print(f"       {name}: {message}")
    pending = {spec.name for run in runs for spec in run.report.of("pending")}
    for name in sorted(pending):
        print(f"Switched off in csi-sanity itself: {name}")
    print()


if __name__ == "__main__":
    sys.exit(main())
