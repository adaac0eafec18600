"""Options that all commands of `shorthorn image` share, and which cluster they mean.

Owns: their names and help, and the search for a kubeconfig and for the byte endpoint. Must never:
open a connection. Called by the commands beside it and by `completion`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from shorthorn.commands.image.completion import complete_image
from shorthorn.settings import DEFAULT_DATA_DIR, DEFAULT_NAMESPACE

WEB_URL_FILE: Final = "web.url"
"""Below a data directory: where this host's web edge listens, which `shorthorn up` writes."""

ImageName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of the backing image.",
        show_default=False,
        autocompletion=complete_image,
    ),
]
ImageNames = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME",
        help="Names of backing images.",
        show_default=False,
        autocompletion=complete_image,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        help="Kubeconfig of the cluster or host. Default: that of --data-dir, else KUBECONFIG, else"
        f" the one of SHORTHORN_DATA_DIR or {DEFAULT_DATA_DIR}, else ~/.kube/config.",
        show_default=False,
        rich_help_panel="Where",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Data directory of `shorthorn up` on this host.",
        show_default=False,
        resolve_path=True,
        rich_help_panel="Where",
    ),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", help="Where the backing images are.", rich_help_panel="Where"
    ),
]
ImageNamespace = Annotated[
    str,
    typer.Option(
        "--image-namespace", help="Where the backing images are.", rich_help_panel="Where"
    ),
]
Server = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="SHORTHORN_SERVER",
        help="URL of the web edge, which bytes pass through. Default: the one of this host.",
        show_default=False,
        rich_help_panel="Where",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Return when it is done, or has failed.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=1)]
RetryFor = Annotated[
    float,
    typer.Option("--retry-for", help="Seconds without any byte after which to give up.", min=1),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

TIMEOUT_S: Final = 3600.0
RETRY_FOR_S: Final = 60.0
NAMESPACE: Final = DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True)
class Place:
    """One cluster or host, and the namespace of its backing images."""

    kubeconfig: Path
    namespace: str = DEFAULT_NAMESPACE

    @property
    def web_url_file(self) -> Path:
        """Where the host of this kubeconfig says how its web edge is reached."""
        return self.kubeconfig.parent / WEB_URL_FILE


def find_place(
    kubeconfig: Path | None,
    data_dir: Path | None,
    namespace: str,
    environment: Mapping[str, str] | None = None,
) -> Place:
    """Return the place that options and environment name; what was said here and now comes first.

    Of KUBECONFIG, which may be a list, the first file that exists counts.
    """
    env = os.environ if environment is None else environment
    home = Path(env.get("HOME") or "/")
    default = Path(env.get("SHORTHORN_DATA_DIR") or DEFAULT_DATA_DIR) / "kubeconfig"
    if kubeconfig is not None:
        return Place(kubeconfig, namespace)
    if data_dir is not None:
        return Place(data_dir / "kubeconfig", namespace)
    listed = [Path(path) for path in env.get("KUBECONFIG", "").split(os.pathsep) if path]
    if listed:
        return Place(next((p for p in listed if p.exists()), listed[0]), namespace)
    if env.get("SHORTHORN_DATA_DIR") or _is_readable(default):
        return Place(default, namespace)
    user = home / ".kube" / "config"
    return Place(user if user.exists() else default, namespace)


def _is_readable(path: Path) -> bool:
    return os.access(path, os.R_OK)
