"""`shorthorn controller` and `shorthorn node`: the two programs of a cluster.

Owns: their options, and what they are when nobody says. Must never: wire anything (`daemon` does).
The Helm chart writes these command lines; people read `--help`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from shorthorn.commands.serving import log_to_stderr, refuse, serve
from shorthorn.settings import (
    DEFAULT_DATA_DIR,
    DEFAULT_LEASE,
    DEFAULT_NAMESPACE,
    DRIVER_NAME,
    ControllerSettings,
    NodeSettings,
    parse_listen,
    parse_size,
)

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NODE_ID_BYTES_MAX = 192
_ANY_ADDRESS = ("", "0.0.0.0", "::")

CONTROLLER_EPILOG = """Beside external-provisioner, -snapshotter and -resizer in one pod:

shorthorn controller --csi-socket /csi/csi.sock --http-listen :8080

On a workstation, against any cluster that has our kinds:

shorthorn controller --csi-socket /tmp/csi.sock --kubeconfig ~/.kube/config --no-leader-elect
"""

NODE_EPILOG = """In a privileged pod on each node, beside node-driver-registrar:

shorthorn node --csi-socket /var/lib/kubelet/plugins/driver.longhorn.io/csi.sock
--http-listen :8081 --peer-listen :9750

Tags let images ask for nodes and disks (nodeSelector, diskSelector):

shorthorn node … --node-tag rack-1 --node-tag big --disk-tag nvme
"""

CsiSocket = Annotated[
    Path,
    typer.Option(
        "--csi-socket",
        envvar="SHORTHORN_CSI_SOCKET",
        help="Where to serve CSI: a unix socket, made with mode 0600, at most 103 bytes long.",
        resolve_path=True,
    ),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        envvar=["SHORTHORN_NAMESPACE", "POD_NAMESPACE"],
        help="Namespace of BackingImages, Volumes, Snapshots, ImageCopies and Pools. Default: this"
        " pod's.",
        show_default=False,
    ),
]
DriverName = Annotated[
    str,
    typer.Option(
        "--driver-name",
        envvar="SHORTHORN_DRIVER_NAME",
        help="CSI driver name: the StorageClass's provisioner, the snapshot class's driver.",
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        envvar="SHORTHORN_KUBECONFIG",
        help="How to reach the API server. Default: the service account of this pod, whose token"
        " is read again when it was rotated.",
        show_default=False,
    ),
]
HttpListen = Annotated[
    str,
    typer.Option(
        "--http-listen",
        envvar="SHORTHORN_HTTP_LISTEN",
        help="HOST:PORT of /healthz, /readyz (which says what is waited for) and /metrics; without"
        " a host on all addresses. Default: nowhere.",
        show_default=False,
    ),
]
WebListen = Annotated[
    str,
    typer.Option(
        "--web-listen",
        envvar="SHORTHORN_WEB_LISTEN",
        help="HOST:PORT of the web page and of /api/v1, plain HTTP: put a proxy with TLS before it;"
        " without a host on all addresses. Default: nowhere.",
        show_default=False,
    ),
]
NodeId = Annotated[
    str,
    typer.Option(
        "--node-id",
        envvar=["SHORTHORN_NODE_ID", "NODE_NAME"],
        help="Name of this machine's Node object (in a pod: spec.nodeName).",
    ),
]
DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="SHORTHORN_DATA_DIR",
        help="Holds the pool; the same path in the container as on the host.",
        file_okay=False,
        resolve_path=True,
    ),
]
PoolSize = Annotated[
    str,
    typer.Option(
        "--pool-size",
        envvar="SHORTHORN_POOL_SIZE",
        help="Size, as in 200G, of the pool file made where the file system of DATA_DIR has no"
        " reflinks (ext4). Default: half of the free space, at most 20G.",
        show_default=False,
    ),
]
PeerListen = Annotated[
    str,
    typer.Option(
        "--peer-listen",
        envvar="SHORTHORN_PEER_LISTEN",
        help="HOST:PORT at which other nodes fetch images from this one, over mutual TLS."
        " Default: nowhere.",
        show_default=False,
    ),
]
PeerAddress = Annotated[
    str,
    typer.Option(
        "--peer-address",
        envvar="SHORTHORN_PEER_ADDRESS",
        help="HOST:PORT that the others dial. Default: POD_IP of the environment with the port"
        " of --peer-listen.",
        show_default=False,
    ),
]
NodeTags = Annotated[
    list[str] | None,
    typer.Option(
        "--node-tag",
        envvar="SHORTHORN_NODE_TAGS",
        help="Tag of this node, for nodeSelector; again for each, or a,b.",
        show_default=False,
    ),
]
DiskTags = Annotated[
    list[str] | None,
    typer.Option(
        "--disk-tag",
        envvar="SHORTHORN_DISK_TAGS",
        help="Tag of this pool, for diskSelector; again for each, or a,b.",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every call, too.")]


def controller(
    csi_socket: CsiSocket,
    namespace: Namespace = "",
    driver_name: DriverName = DRIVER_NAME,
    kubeconfig: Kubeconfig = None,
    http_listen: HttpListen = "",
    web_listen: WebListen = "",
    leader_elect: Annotated[
        bool,
        typer.Option(
            "--leader-elect/--no-leader-elect",
            envvar="SHORTHORN_LEADER_ELECT",
            help="Run reconcilers only while holding the lease; without it, run one replica.",
        ),
    ] = True,
    lease_name: Annotated[
        str,
        typer.Option(envvar="SHORTHORN_LEASE_NAME", help="Name of the Lease, in the namespace."),
    ] = DEFAULT_LEASE,
    verbose: Verbose = False,
) -> None:
    """Answer the controller half of CSI, and keep BackingImages: one program of a cluster.

    Every replica answers calls; one of them, which holds the lease, runs the reconcilers. Needs no
    root and no disk. Refuses to start where Longhorn itself is installed.
    """
    _check_listen("--http-listen", http_listen)
    _check_listen("--web-listen", web_listen)
    log_to_stderr(logging.DEBUG if verbose else logging.INFO)
    settings = ControllerSettings(
        csi_socket=csi_socket,
        namespace=namespace or _own_namespace(),
        driver_name=driver_name,
        kubeconfig=kubeconfig,
        http_listen=http_listen,
        web_listen=web_listen,
        leader_elect=leader_elect,
        lease_name=lease_name,
        identity=os.environ.get("POD_NAME", ""),
    )
    # The heavy half of the imports: only who serves pays.
    from shorthorn.daemon.controller import ControllerProgram

    asyncio.run(serve(lambda: ControllerProgram(settings), lambda program: None))


def node(
    csi_socket: CsiSocket,
    node_id: NodeId,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    pool_size: PoolSize = "",
    namespace: Namespace = "",
    driver_name: DriverName = DRIVER_NAME,
    kubeconfig: Kubeconfig = None,
    http_listen: HttpListen = "",
    peer_listen: PeerListen = "",
    peer_address: PeerAddress = "",
    node_tag: NodeTags = None,
    disk_tag: DiskTags = None,
    verbose: Verbose = False,
) -> None:
    """Own this machine's pool, and answer the node half of CSI: one program of a cluster.

    Needs root. Volumes that are in use are not touched by starting, stopping or killing this;
    mounting works while the API server is away.
    """
    if os.geteuid() != 0:
        refuse("`shorthorn node` attaches loop devices and mounts file systems: run it as root")
    if not 0 < len(node_id.encode()) <= _NODE_ID_BYTES_MAX:
        refuse(f"--node-id must have 1 to {_NODE_ID_BYTES_MAX} bytes")
    _check_listen("--http-listen", http_listen)
    _check_listen("--peer-listen", peer_listen)
    log_to_stderr(logging.DEBUG if verbose else logging.INFO)
    settings = NodeSettings(
        csi_socket=csi_socket,
        namespace=namespace or _own_namespace(),
        driver_name=driver_name,
        kubeconfig=kubeconfig,
        http_listen=http_listen,
        node_id=node_id,
        data_dir=data_dir,
        pool_size_bytes=_size(pool_size),
        node_tags=tags(node_tag or []),
        disk_tags=tags(disk_tag or []),
        peer_listen=peer_listen,
        peer_address=_peer_address(peer_listen, peer_address),
    )
    # The heavy half of the imports: only who serves pays.
    from shorthorn.daemon.node import NodeProgram

    asyncio.run(serve(lambda: NodeProgram(settings), lambda program: None))


def tags(given: list[str]) -> tuple[str, ...]:
    """Return the tags of options and comma lists, sorted, each once."""
    parts = (tag.strip() for option in given for tag in option.split(","))
    return tuple(sorted({tag for tag in parts if tag}))


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip() or DEFAULT_NAMESPACE
    except OSError:
        return DEFAULT_NAMESPACE


def _check_listen(option: str, text: str) -> None:
    try:
        if text:
            parse_listen(text)
    except ValueError as exc:
        refuse(f"{option}: {exc}")


def _size(text: str) -> int | None:
    try:
        return parse_size(text) if text else None
    except ValueError as exc:
        refuse(f"--pool-size: {exc}")


def _peer_address(listen: str, given: str) -> str:
    """Return what others dial; empty where this node does not listen."""
    if not listen:
        return ""
    if given:
        _check_listen("--peer-address", given)
        return given
    host, port = parse_listen(listen)
    host = os.environ.get("POD_IP", "") or host
    if host in _ANY_ADDRESS:
        refuse("--peer-address is needed: --peer-listen names no address, and POD_IP is not set")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
