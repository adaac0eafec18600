"""Templates, and how figures are written in them.

Owns: the Jinja environment (everything is escaped, undefined names are errors), the filters for
bytes, times and rates, and the addresses of static files. Must never: decide what is shown. Called
by pages and event streams.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from shorthorn.domain import byte_sizes

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

STATIC: Final = "static"


def make_environment() -> Environment:
    """Return the environment of all templates."""
    environment = Environment(
        loader=PackageLoader("shorthorn.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "rate": lambda value: f"{format_bytes(value)}/s",
        "seconds": format_seconds,
        "utc": format_time,
        "iso": format_iso,
        "digest": digest_of,
        "count": lambda value: f"{value:,}".replace(",", "\u202f"),
    }
    environment.globals |= {"static": StaticFiles().url, "now": lambda: datetime.now(UTC)}
    return environment


class StaticFiles:
    """Addresses of our files, with what they hold in them: browsers keep each for good."""

    def __init__(self) -> None:
        folder = resources.files("shorthorn.web") / STATIC
        self._versions = dict(_digests(folder, ""))

    def url(self, name: str) -> str:
        """Return the address of a file below static/."""
        return f"/static/{name}?v={self._versions[name]}"


def format_bytes(value: float | None) -> str:
    """Return 1536 as `1.5 KiB`; None and unknown sizes as a dash."""
    if value is None:
        return "–"
    return byte_sizes.format_bytes(value)


def format_seconds(value: float | None) -> str:
    """Return 150 as `3 min`: how long something may still take, roughly."""
    if value is None:
        return "–"
    if value < 90:
        return f"{max(1, round(value))} s"
    if value < 90 * 60:
        return f"{round(value / 60)} min"
    if value < 36 * 3600:
        return f"{round(value / 3600)} h"
    return f"{round(value / 86400)} days"


def format_time(when: datetime | None) -> str:
    """Return a time for people, in UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if when else "–"


def format_iso(when: datetime | None) -> str:
    """Return a time for programs."""
    return when.astimezone(UTC).isoformat(timespec="seconds") if when else ""


def digest_of(text: str) -> str:
    """Return a short text that differs where `text` does: what of a page is another one now."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digests(folder: Traversable, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _digests(entry, f"{prefix}{entry.name}/")
        else:
            digest = hashlib.sha256(entry.read_bytes()).hexdigest()[:12]
            found.append((f"{prefix}{entry.name}", digest))
    return found


def context(**values: Any) -> dict[str, Any]:
    """Return values for a template with the time of now, which ages are counted from."""
    return {"at": datetime.now(UTC), **values}
