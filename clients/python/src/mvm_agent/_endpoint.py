"""Where an agent is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from ._codec import PORT


@dataclass(frozen=True)
class HybridVsock:
    """The Unix socket of a VMM (Firecracker's `uds_path`, Cloud Hypervisor's `--vsock socket=`,
    vhost-device-vsock's `--uds-path`), or of an agent that listens on `unix:PATH`."""

    path: str
    port: int = PORT


@dataclass(frozen=True)
class Vsock:
    """The guest with that CID, by the host's own vsock device (QEMU's `vhost-vsock-pci`)."""

    cid: int
    port: int = PORT


#: What sessions are opened to; a plain path is hybrid vsock.
Endpoint = Union[str, HybridVsock, Vsock]


def parsed(endpoint: Endpoint) -> Union[HybridVsock, Vsock]:
    return HybridVsock(endpoint) if isinstance(endpoint, str) else endpoint
