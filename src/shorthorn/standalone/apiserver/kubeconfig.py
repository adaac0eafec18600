"""The kubeconfig that lets kubectl and our own clients in.

Owns the file: mode 0600, replaced atomically. Called at start, after the server has its address.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from shorthorn.host.files import ensure_file

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "shorthorn"


def write_kubeconfig(
    path: Path, *, url: str, token: str, authority: str, namespace: str = "default"
) -> None:
    """Write a kubeconfig with one cluster, user and context.

    Args:   authority: the certificate authority as PEM; blank for a server without TLS.
    State:  on any error the old file is still there, whole.
    """
    cluster = {"server": url}
    if authority:
        encoded = base64.b64encode(authority.encode("ascii")).decode("ascii")
        cluster["certificate-authority-data"] = encoded
    context = {"cluster": _NAME, "user": _NAME, "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": _NAME, "cluster": cluster}],
        "users": [{"name": _NAME, "user": {"token": token}}],
        "contexts": [{"name": _NAME, "context": context}],
        "current-context": _NAME,
        "preferences": {},
    }
    # JSON is YAML, and needs no emitter.
    ensure_file(path, msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
