"""What users call a volume: the claims that PersistentVolumes are bound to.

Owns: the implementation of `domain.ports.ClaimDirectory`. Must never: change anything. Used for
hints in error messages only, so an API server that does not answer gives no hint instead of an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightkube import AsyncClient

from shorthorn.domain import errors
from shorthorn.kube.client import domain_errors
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import as_mapping

_PV = resource_class("v1", "PersistentVolume", "persistentvolumes", is_namespaced=False)


class KubeClaimDirectory:
    """PersistentVolumes of one driver, by the name of their claim."""

    def __init__(self, client: AsyncClient, *, driver_name: str) -> None:
        self._client: Any = client
        self._driver_name = driver_name

    async def volume_handles_of_claim(self, claim: str) -> Sequence[str]:
        try:
            with domain_errors("PersistentVolume", "list"):
                volumes = [as_mapping(volume) async for volume in self._client.list(_PV)]
        except errors.DomainError:
            return []
        return [
            volume["spec"]["csi"]["volumeHandle"]
            for volume in volumes
            if (volume["spec"].get("csi") or {}).get("driver") == self._driver_name
            and (volume["spec"].get("claimRef") or {}).get("name") == claim
        ]
