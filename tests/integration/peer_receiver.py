"""A process that fetches an image from a peer, to be killed.

    python peer_receiver.py LEAF_JSON ADDRESS STAGING

Checkpoints are small, so that a test needs few bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.peers import Tls, fetch

from shorthorn.domain.models import Peer
from shorthorn.images import staged_writer
from shorthorn.kube.peer_certificates import Leaf

if __name__ == "__main__":
    staged_writer.CHECKPOINT_BYTES = 1 << 20
    tls = Tls(Leaf(**json.loads(Path(sys.argv[1]).read_text())))
    asyncio.run(fetch(tls, [Peer("a", "", sys.argv[2])], Path(sys.argv[3])))
