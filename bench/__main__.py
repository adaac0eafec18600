"""Runs the measurements in order; see `--help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

from bench import claims, clones, copies, disks, pages, peers, service_costs, web, writes
from bench.disks import GIB, MIB
from bench.driver import connected
from bench.report import Report
from bench.workspace import BenchFailed, Service, workspace
from shorthorn.engines.local import LocalEngine

_ABOUT = """\
Measures export and restore against qemu-img convert and cp on the same data, in turn, in one run;
then the service: memory, start, claims, clones by extents, writes without it; images from a peer,
and through the web page's server against nginx; the page's list of 5,000 images and its events
against LIST and watch of the API server.
Needs root, qemu-img and kubectl. Everything happens on a service of its own in a new directory,
which is removed.

Exit code 0: all promises were kept. 1: one was not. With --quick, promises about time are printed
but not judged: a small disk on a busy machine says little about them.
"""
_PARTS = ("start", "memory", "copies", "claims", "clones", "writes", "peers", "web", "pages")


def main() -> int:
    options = _parser().parse_args()
    if os.geteuid() != 0:
        return _refuse("it attaches loop devices and mounts file systems: run it as root")
    pool_bytes = (4 if options.quick else 24) * GIB
    if shutil.disk_usage(options.dir).free < pool_bytes + GIB:
        return _refuse(f"{options.dir} needs {pool_bytes // GIB + 1} GiB of free space")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = Report(
        {"quick": options.quick, "rounds": options.rounds, "parts": options.part},
        judges_timings=not options.quick,
    )
    try:
        with workspace(options.dir, pool_size=f"{pool_bytes // GIB}G") as service:
            asyncio.run(_measure(service, options, report))
    except BenchFailed as exc:
        return _refuse(str(exc))
    except KeyboardInterrupt:
        return _refuse("interrupted; what it made is gone")
    print(f"\nwritten to {report.write()}")
    broken = report.broken()
    for check in broken:
        print(f"bench: not kept: {check.promise}: {check.found}", file=sys.stderr)
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/run", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small disks, one minute at most")
    parser.add_argument("--rounds", type=int, help="default: 5, for 8 GiB 3, pages 20; quick: 2, 5")
    parser.add_argument(
        "--part", action="append", choices=_PARTS, help="only this; may be repeated"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where 25 GiB are free (quick: 5)"
    )
    return parser


def _refuse(problem: str) -> int:
    print(f"bench: {problem}", file=sys.stderr)
    return 1


async def _measure(service: Service, options: argparse.Namespace, report: Report) -> None:
    parts = options.part or _PARTS
    quick = options.quick
    service.start()
    (service.pool / "bench").mkdir()
    if "start" in parts:
        report.add(service_costs.start(service, rounds=options.rounds or (2 if quick else 5)))
    if "memory" in parts:
        report.add(await service_costs.memory(service, "at first", idle_s=2 if quick else 60))
    if "copies" in parts:
        await _measure_copies(service, options, report)
    if "claims" in parts:
        rounds = options.rounds or (2 if quick else 5)
        report.add(await claims.by_kubectl(service, rounds=rounds))
        report.add(await claims.restored_at_once(service, count=30 if quick else 300))
    if "memory" in parts:
        report.add(await service_costs.memory(service, "after work", idle_s=2 if quick else 60))
    if "clones" in parts:
        counts = (1000, 10_000) if quick else (1000, 10_000, 100_000)
        rounds = options.rounds or (3 if quick else 5)
        report.add(clones.by_extents(service.pool, counts, rounds=rounds))
    if "peers" in parts:
        await _measure_peers(service, options, report)
    if "web" in parts:
        data_bytes = (256 * MIB) if quick else 4 * GIB
        rounds = options.rounds or (1 if quick else 4)
        report.add(web.compare(service, data_bytes=data_bytes, rounds=rounds))
    if "pages" in parts:
        for section in await pages.measure(
            service,
            images=500 if quick else 5000,
            rounds=options.rounds or (5 if quick else 20),
            changes=20 if quick else 200,
        ):
            report.add(section)
    if "writes" in parts:
        data_bytes = (64 if quick else 512) * MIB
        rounds = options.rounds or (1 if quick else 5)
        report.add(
            await writes.with_and_without_service(service, data_bytes=data_bytes, rounds=rounds)
        )


async def _measure_peers(service: Service, options: argparse.Namespace, report: Report) -> None:
    data_bytes = (64 * MIB) if options.quick else GIB
    rounds = options.rounds or (1 if options.quick else 5)
    for disk in (
        disks.contiguous(f"{data_bytes // MIB} MiB of data", data_bytes, data_bytes),
        disks.contiguous(f"{data_bytes // MIB} MiB of data, 3/4 holes", data_bytes, 4 * data_bytes),
        disks.scattered("5,000 scattered blocks of 4 KiB", 5000, data_bytes),
    ):
        report.add(await peers.compare(disk, service.pool, rounds=rounds))


async def _measure_copies(service: Service, options: argparse.Namespace, report: Report) -> None:
    root = service.pool / "bench" / "engine"
    root.mkdir()
    engine = LocalEngine(root, owner="bench")
    await engine.open()
    try:
        async with connected(service.csi_socket) as driver:
            for disk, rounds in _plan(options):
                report.add(
                    await copies.compare(
                        disk,
                        driver,
                        engine,
                        service.pool,
                        rounds=rounds,
                        is_timed=disk.extents == 1,
                    )
                )
    finally:
        await engine.close()


def _plan(options: argparse.Namespace) -> list[tuple[disks.Disk, int]]:
    if options.quick:
        few = options.rounds or 2
        return [
            (disks.contiguous("256 MiB contiguous", 256 * MIB, GIB), few),
            (disks.scattered("2,000 scattered blocks of 4 KiB", 2000, GIB), few),
        ]
    return [
        (disks.contiguous("2 GiB contiguous", 2 * GIB, 10 * GIB), options.rounds or 5),
        (disks.contiguous("8 GiB contiguous", 8 * GIB, 10 * GIB), options.rounds or 3),
        (
            disks.scattered("20,000 scattered blocks of 4 KiB", 20_000, 10 * GIB),
            options.rounds or 5,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
