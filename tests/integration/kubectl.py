"""Real kubectls: where they are, and how they are kept from the user's files."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Debian's own, unpacked beside the machine's by `scripts/setup test`.
DEBIAN_KUBECTL = ROOT / ".cache" / "debian-kubectl" / "usr" / "bin" / "kubectl"
TIMEOUT_S = 60


def binaries() -> list[Path | None]:
    """Return the kubectls to test with; None where one that is promised is missing.

    SHORTHORN_KUBECTLS (paths, separated by colons) overrides the machine's and Debian's.
    """
    chosen = os.environ.get("SHORTHORN_KUBECTLS")
    if chosen:
        return [Path(path) if os.access(path, os.X_OK) else None for path in chosen.split(":")]
    machine = shutil.which("kubectl")
    debian = DEBIAN_KUBECTL if os.access(DEBIAN_KUBECTL, os.X_OK) else None
    return [Path(machine) if machine else None, debian]


def require(binary: Path | None) -> Path:
    """Fail, rather than skip, when a kubectl is missing: the promise covers both."""
    if binary is None:
        pytest.fail("a kubectl is missing: `scripts/setup test` fetches Debian's (needs apt)")
    return binary


@dataclass(frozen=True)
class Output:
    """What a kubectl run left."""

    code: int
    out: str
    err: str


@dataclass
class Kubectl:
    """Runs one kubectl binary with its own kubeconfig, cache and home."""

    binary: Path
    kubeconfig: Path
    home: Path
    minor: int = 0
    seen: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """The program and the options every run has."""
        cache = self.home / "cache"
        return [str(self.binary), f"--kubeconfig={self.kubeconfig}", f"--cache-dir={cache}"]

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the user's environment but the search path."""
        return {"HOME": str(self.home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a kubectl; the caller ends it."""
        return await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, stdin: str = "") -> Output:
        """Run a kubectl to its end, whatever it is."""
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                out, err = await process.communicate(stdin.encode())
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return Output(process.returncode or 0, out.decode(), err.decode())

    async def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run a kubectl that must succeed and complain of nothing; return what it prints."""
        ran = await self.run(*arguments, stdin=stdin)
        assert (ran.code, ran.err) == (0, ""), f"kubectl {' '.join(arguments)}: {ran}"
        return ran.out

    async def refused(self, *arguments: str, stdin: str = "") -> str:
        """Run a kubectl that must fail; return its complaint."""
        ran = await self.run(*arguments, stdin=stdin)
        assert ran.code != 0, f"kubectl {' '.join(arguments)} succeeded: {ran.out}"
        return ran.err
