"""What `shorthorn up`, `controller` and `node` can be told, with units, defaults and their reasons.

Owns: the frozen settings that `daemon` passes on. Must never: be imported by what is configured,
nor read an environment variable behind anybody's back.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B?)", re.IGNORECASE)

DRIVER_NAME = "driver.longhorn.io"
"""The CSI driver name of the manifests that we serve: Longhorn's."""

DEFAULT_DATA_DIR = Path("/var/lib/shorthorn")
"""Where a host keeps it unless told otherwise."""

DEFAULT_NAMESPACE = "longhorn-system"
"""Where our objects live; Longhorn's namespace."""

DEFAULT_LEASE = "shorthorn-controller"
"""Lease of the controller that leads."""


@dataclass(frozen=True)
class Settings:
    """One host's daemon."""

    data_dir: Path
    """Everything lives below it: kubeconfig, csi.sock, state.db, the pool."""

    pool_size_bytes: int | None = None
    """Size of the pool file, where the data directory's file system has no reflinks and one is
    made. None: half of the free space, at most 20 GiB. It is allocated at once, so that volumes can
    always be written. No effect on an existing pool."""

    listen_host: str = "127.0.0.1"
    """Address of the API server; loopback only, because its one token may do everything."""

    listen_port: int = 0
    """Port of the API server. 0: the one used last time if it is free, else any free one."""

    web_host: str = "127.0.0.1"
    """Address of the web page; loopback only, because it is plain HTTP."""

    web_port: int | None = 0
    """Port of the web page. 0: the one used last time if it is free, else any free one. None: there
    is no web page."""

    namespace: str = DEFAULT_NAMESPACE
    driver_name: str = DRIVER_NAME

    node_id: str = socket.gethostname()
    """Name of this node in topology and PersistentVolumes; at most 192 bytes (CSI's limit for a
    node id is 256).
    """

    @property
    def kubeconfig(self) -> Path:
        return self.data_dir / "kubeconfig"

    @property
    def csi_socket(self) -> Path:
        return self.data_dir / "csi.sock"

    @property
    def database(self) -> Path:
        return self.data_dir / "state.db"

    @property
    def token_file(self) -> Path:
        return self.data_dir / "token"

    @property
    def web_key(self) -> Path:
        """Key of the web page's cookies and login links; who removes it ends all sessions."""
        return self.data_dir / "web.key"

    @property
    def web_url(self) -> Path:
        """Holds the web page's address, for `shorthorn login` and the next start."""
        return self.data_dir / "web.url"

    @property
    def staging_dir(self) -> Path:
        """CSI staging mounts: what a kubelet keeps below /var/lib/kubelet/plugins."""
        return self.data_dir / "staging"

    @property
    def devices_dir(self) -> Path:
        """Where `shorthorn path` publishes block volumes."""
        return self.data_dir / "devices"


@dataclass(frozen=True)
class ClusterSettings:
    """What both programs of a cluster are told."""

    csi_socket: Path
    """Where CSI is served: for the sidecars of the same pod, on a node for the kubelet too."""

    namespace: str = DEFAULT_NAMESPACE
    """Where our objects live: the release's namespace."""

    driver_name: str = DRIVER_NAME

    kubeconfig: Path | None = None
    """How to reach the API server. None: the pod's service account, whose token is read again when
    it was rotated."""

    http_listen: str = ""
    """HOST:PORT of /healthz, /readyz and /metrics; an empty host: all addresses. Empty: nowhere."""


@dataclass(frozen=True, kw_only=True)
class ControllerSettings(ClusterSettings):
    """`shorthorn controller`."""

    leader_elect: bool = True
    """Whether reconcilers run only while this process holds the lease. Without it there must be one
    replica."""

    lease_name: str = DEFAULT_LEASE
    """Lease object in `namespace`."""

    web_listen: str = ""
    """HOST:PORT of the web page and of /api/v1; an empty host: all addresses. Empty: nowhere."""

    identity: str = ""
    """Who holds the lease: the pod's name, which nobody else has at any time. Empty: the host's
    name with a random end."""


@dataclass(frozen=True, kw_only=True)
class NodeSettings(ClusterSettings):
    """`shorthorn node`."""

    node_id: str
    """Name of the Kubernetes Node object; at most 192 bytes (CSI's limit for a node id is 256)."""

    data_dir: Path = DEFAULT_DATA_DIR
    """Holds the pool. The same path inside and outside of the container, because the kubelet and
    mount tables name paths."""

    pool_size_bytes: int | None = None
    """As in `Settings`."""

    node_tags: tuple[str, ...] = ()
    """What an image's nodeSelector may ask for."""

    disk_tags: tuple[str, ...] = ()
    """What an image's diskSelector may ask for."""

    peer_listen: str = ""
    """HOST:PORT at which this node gives image bytes to others. Empty: it gives none."""

    peer_address: str = ""
    """HOST:PORT that others dial for `peer_listen`; told in the Pool object."""


def parse_size(text: str) -> int:
    """Return bytes of "20G", "512MiB", "1T"; powers of 1024. Raises ValueError naming what is
    accepted.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is not a size; write a number and K, M, G or T, as in 20G")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of "127.0.0.1:6443", "[::1]:6443" or ":6443" (host empty: all).

    Raises: ValueError.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, as in 127.0.0.1:6443")
    return host.strip("[]"), int(port)
