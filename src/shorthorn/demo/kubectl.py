"""Plain kubectl with the kubeconfig that `shorthorn up` printed.

Owns: calling the user's kubectl (any since 1.20), showing each call, and waiting: `kubectl wait`
where it knows jsonpath (1.23), else asking again. Must never: speak to the API server itself.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shorthorn.demo.failures import StepFailed
from shorthorn.demo.manifests import Manifest
from shorthorn.demo.report import Report
from shorthorn.kit import process

IMAGES_NAMESPACE = "longhorn-system"
WAIT_TIMEOUT_S = 90.0

_CALL_TIMEOUT_S = 120.0
_POLL_S = 0.2
#: The first kubectl whose `wait` takes --for=jsonpath.
_WAITS_FOR_JSONPATH = (1, 23)


@dataclass(frozen=True, slots=True)
class Answer:
    """What kubectl said. Output and complaints are kept apart: warnings come with success."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return self.stderr + self.stdout


class Kubectl:
    """One user's kubectl."""

    def __init__(self, program: str, kubeconfig: Path, cache_dir: Path, report: Report) -> None:
        self._argv = (program, f"--kubeconfig={kubeconfig}", f"--cache-dir={cache_dir}")
        self._report = report
        self._waits_for_jsonpath: bool | None = None

    async def call(self, *arguments: str, stdin: str | None = None) -> Answer:
        """Run kubectl and return whatever it says, showing nothing."""
        done = await process.run(
            (*self._argv, *arguments),
            timeout_s=_CALL_TIMEOUT_S,
            stdin=None if stdin is None else stdin.encode(),
            check=False,
        )
        return Answer(done.returncode, done.text, done.stderr.decode(errors="replace"))

    async def show(self, *arguments: str) -> str:
        """Run kubectl for the reader's eyes. Raises StepFailed."""
        self._report.command(shlex.join(("kubectl", *arguments)))
        answer = await self.call(*arguments)
        self._report.output(answer.said)
        return _checked(answer, arguments).stdout

    async def apply(self, manifest: Manifest, *, typed: str = "") -> Answer:
        """Show what was filled in and apply it. Raises StepFailed: refused."""
        self._report.differences(manifest.name, manifest.differences())
        return await self.apply_text(manifest.text, typed or f"kubectl apply -f {manifest.name}")

    async def apply_text(self, text: str, typed: str) -> Answer:
        """Apply a manifest; `typed` is what a user would have typed. Raises StepFailed."""
        answer = await self.try_apply(text, typed)
        return _checked(answer, ("apply", "-f", "-"))

    async def try_apply(self, text: str, typed: str) -> Answer:
        """Apply a manifest that may be refused."""
        self._report.command(typed)
        answer = await self.call("apply", "-f", "-", stdin=text)
        style = "" if answer.returncode == 0 else "yellow"
        self._report.output(answer.stderr, style="yellow")
        self._report.output(answer.stdout, style=style)
        return answer

    async def value(self, target: str, path: str, *, namespace: str = "default") -> str:
        """Return one value of an object ("pvc/test-vol", ".spec.volumeName"); empty: not set.

        Raises: StepFailed: there is no such object.
        """
        arguments = ("get", target, f"-n={namespace}", f"-o=jsonpath={{{path}}}")
        return _checked(await self.call(*arguments), arguments).stdout

    async def names(self, kind: str, *, namespace: str = "default") -> list[str]:
        """Return the names of the objects of a kind, as "kind/name"."""
        arguments = ("get", kind, f"-n={namespace}", "-o=name")
        return _checked(await self.call(*arguments), arguments).stdout.split()

    async def wait(
        self,
        target: str,
        path: str,
        wanted: str,
        *,
        namespace: str = "default",
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> None:
        """Wait until a value of an object is as wanted. Raises StepFailed naming what it is."""
        if await self._knows_jsonpath():
            met = await self._wait(target, path, wanted, namespace, timeout_s)
        else:
            met = await self._poll(target, path, wanted, namespace, timeout_s)
        if not met:
            found = await self.value(target, path, namespace=namespace)
            raise StepFailed(
                f"{target}: {path} is {found or 'not set'} and not {wanted} "
                f"after {timeout_s:.0f} s",
                about=[f"{namespace}/{target}"],
            )

    async def wait_text(
        self,
        target: str,
        path: str,
        *,
        namespace: str = "default",
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> str:
        """Wait until a value is set at all, and return it. Raises StepFailed."""
        self._report.command(f"kubectl get {target}{_in(namespace)} -o jsonpath='{{{path}}}'")
        deadline = time.monotonic() + timeout_s
        while not (found := await self.value(target, path, namespace=namespace)):
            if time.monotonic() > deadline:
                problem = f"{target}: {path} is not set after {timeout_s:.0f} s"
                raise StepFailed(problem, about=[f"{namespace}/{target}"])
            await asyncio.sleep(_POLL_S)
        return found

    async def wait_gone(self, target: str, *, namespace: str = "default") -> None:
        """Wait until an object is gone. Raises StepFailed."""
        kind, _, name = target.partition("/")
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while any(n.endswith(f"/{name}") for n in await self.names(kind, namespace=namespace)):
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"{target} is still there after {WAIT_TIMEOUT_S:.0f} s",
                    about=[f"{namespace}/{target}"],
                )
            await asyncio.sleep(_POLL_S)

    async def wait_none(self, kind: str, *, namespace: str = "default") -> None:
        """Wait until there is no object of a kind. Raises StepFailed."""
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while left := await self.names(kind, namespace=namespace):
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"after {WAIT_TIMEOUT_S:.0f} s there are still {', '.join(left)}",
                    about=[f"{namespace}/{target}" for target in left],
                )
            await asyncio.sleep(_POLL_S)

    async def wait_event(self, target: str, word: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> str:
        """Wait for an event of an object whose message holds `word`, and return the message."""
        kind, _, name = target.partition("/")
        self._report.command(f"kubectl describe {kind} {name} | grep -A9 Events")
        fields = f"involvedObject.name={name}"
        deadline = time.monotonic() + timeout_s
        while True:
            answer = await self.call("get", "events", f"--field-selector={fields}", "-o=json")
            for event in json.loads(_checked(answer, ("get", "events")).stdout)["items"]:
                if word in event["message"]:
                    return f"{event['type']}  {event['reason']}  {event['message']}"
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"no event of {target} says {word!r} after {timeout_s:.0f} s",
                    about=[f"default/{target}"],
                )
            await asyncio.sleep(_POLL_S)

    async def delete(self, *targets: str, namespace: str = "default") -> None:
        """Delete objects and wait until they are gone. Raises StepFailed."""
        place = ("-n", namespace) if namespace != "default" else ()
        await self.show("delete", *place, *targets)

    async def _wait(
        self, target: str, path: str, wanted: str, namespace: str, timeout_s: float
    ) -> bool:
        typed = f"--for=jsonpath='{{{path}}}'={wanted}"
        self._report.command(f"kubectl wait {typed} {target}{_in(namespace)}")
        limits = (f"-n={namespace}", f"--timeout={timeout_s:.0f}s")
        answer = await self.call("wait", f"--for=jsonpath={{{path}}}={wanted}", target, *limits)
        if answer.returncode == 0:
            self._report.output(f"{target} condition met")
        return answer.returncode == 0

    async def _poll(
        self, target: str, path: str, wanted: str, namespace: str, timeout_s: float
    ) -> bool:
        self._report.command(f"kubectl get {target}{_in(namespace)} -o jsonpath='{{{path}}}'")
        deadline = time.monotonic() + timeout_s
        while await self.value(target, path, namespace=namespace) != wanted:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        self._report.output(wanted)
        return True

    async def _knows_jsonpath(self) -> bool:
        if self._waits_for_jsonpath is None:
            answer = await self.call("version", "--client", "-o=json")
            version = json.loads(_checked(answer, ("version",)).stdout)["clientVersion"]
            found = (int(version["major"]), int(version["minor"].rstrip("+")))
            self._waits_for_jsonpath = found >= _WAITS_FOR_JSONPATH
        return self._waits_for_jsonpath


def _in(namespace: str) -> str:
    return "" if namespace == "default" else f" -n {namespace}"


def _checked(answer: Answer, arguments: Sequence[str]) -> Answer:
    if answer.returncode != 0:
        raise StepFailed(
            f"kubectl {shlex.join(arguments)} ended with {answer.returncode}: {answer.said.strip()}"
        )
    return answer
