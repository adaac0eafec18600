"""Which machines the cluster knows: the implementation of `domain.ports.NodeDirectory`.

Owns: looking a Node object up by name. Must never: watch Nodes, which are large, many and change
all the time; only the few that are in doubt are asked for. Wired by `daemon`.
"""

from __future__ import annotations

from typing import Any

from lightkube import AsyncClient

from shorthorn.domain import errors
from shorthorn.kube.client import domain_errors
from shorthorn.kube.generic import resource_class

_NODE: Any = resource_class("v1", "Node", "nodes", is_namespaced=False)


class KubeNodeDirectory:
    """Node objects by name."""

    def __init__(self, client: AsyncClient) -> None:
        self._client: Any = client

    async def is_known(self, node_id: str) -> bool:
        try:
            with domain_errors("Node", node_id):
                await self._client.get(_NODE, node_id)
        except errors.NotFound:
            return False
        return True
