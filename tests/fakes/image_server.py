"""A web server that serves one file as badly as it is told to.

Real HTTP over real sockets, from a thread of its own, so that a client in another process can use
it as well. Each answer follows the next `Behaviour` in the list, and the last one from then on.
`requests` holds what was asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: For a client that is gone or reads no more; no test waits for it.
_DELIVERY_S = 10.0


@dataclass(frozen=True)
class Behaviour:
    """One way of answering.

    `cut_after`: bytes of body before the connection is reset. `pause_after`: bytes of body before
    nothing more comes until `Served.resume` is set. `chunked`: no Content-Length. `extra_header`s
    replace the usual ones. `status` other than 200 sends `error_body` only.
    """

    status: int = 200
    error_body: bytes = b"no"
    ranges: bool = True
    etag: str | None = '"one"'
    last_modified: str | None = None
    cut_after: int | None = None
    close_after: int | None = None
    pause_after: int | None = None
    chunked: bool = False
    close_delimited: bool = False
    content: bytes | None = None
    ignore_if_range: bool = False
    wrong_range_start: int | None = None
    claim_total: int | None = None
    extra_headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Served:
    """A running server."""

    url: str
    content: bytes
    behaviours: list[Behaviour]
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    resume: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    on_sent: Callable[[int], None] = lambda sent: None

    def next_behaviour(self) -> Behaviour:
        return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

    @property
    def ranges_asked(self) -> list[str]:
        """The Range headers, in order; empty for requests of the whole file."""
        return [headers.get("Range", "") for _, _, headers in self.requests]


@contextlib.contextmanager
def serve(
    content: bytes,
    *behaviours: Behaviour,
    name: str = "disk.img",
    tls: tuple[Path, Path] | None = None,
    address: str = "127.0.0.1",
) -> Iterator[Served]:
    """Serve `content` at the yielded URL until the block ends; `tls`: certificate and key."""
    served = Served("", content, list(behaviours) or [Behaviour()])

    class Handler(_Handler):
        state = served

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    served.url = f"http{'s' if tls else ''}://{address}:{server.server_address[1]}/{name}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.resume.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Served

    def do_GET(self) -> None:
        behaviour = self.state.next_behaviour()
        self.state.requests.append((self.command, self.path, dict(self.headers)))
        with contextlib.suppress(OSError):
            if behaviour.status not in (200, 206):
                self._send_error(behaviour)
            else:
                self._send_file(behaviour)

    def do_HEAD(self) -> None:
        self.state.requests.append((self.command, self.path, dict(self.headers)))
        self.send_error(405)

    def _send_error(self, behaviour: Behaviour) -> None:
        self.send_response(behaviour.status)
        for name, value in behaviour.extra_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(behaviour.error_body)))
        self.end_headers()
        self.wfile.write(behaviour.error_body)

    def _send_file(self, behaviour: Behaviour) -> None:
        content = self.state.content if behaviour.content is None else behaviour.content
        start = self._start(behaviour, len(content))
        if start is None:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        total = behaviour.claim_total or len(content)
        self.send_response(206 if start or behaviour.status == 206 else 200)
        if start or behaviour.status == 206:
            shown = start if behaviour.wrong_range_start is None else behaviour.wrong_range_start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{total}")
        if behaviour.etag is not None:
            self.send_header("ETag", behaviour.etag)
        if behaviour.last_modified is not None:
            self.send_header("Last-Modified", behaviour.last_modified)
        for name, value in behaviour.extra_headers.items():
            self.send_header(name, value)
        if behaviour.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif behaviour.close_delimited:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self._send_body(behaviour, body)

    def _start(self, behaviour: Behaviour, length: int) -> int | None:
        """Return the first byte to send; None where the range lies behind the end."""
        asked = self.headers.get("Range", "")
        if not asked or not behaviour.ranges:
            return 0
        condition = self.headers.get("If-Range")
        known = {behaviour.etag, behaviour.last_modified}
        if condition is not None and condition not in known and not behaviour.ignore_if_range:
            return 0
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        return start if start < length else None

    def _send_body(self, behaviour: Behaviour, body: bytes) -> None:
        sent = 0
        while sent < len(body):
            step = 1 << 16
            for limit in (behaviour.cut_after, behaviour.pause_after, behaviour.close_after):
                if limit is not None and sent < limit:
                    step = min(step, limit - sent)
            piece = body[sent : sent + step]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if behaviour.chunked else piece)
            sent += len(piece)
            self.state.sent += len(piece)
            self.state.on_sent(self.state.sent)
            if sent == behaviour.pause_after:
                self.wfile.flush()
                self.state.resume.wait(60)
            if sent == behaviour.cut_after:
                self._reset()
                return
            if sent == behaviour.close_after:
                self.close_connection = True
                return
        if behaviour.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """Deliver what was written, then close with a reset."""
        self.wfile.flush()
        self._await_delivery()
        self.connection.shutdown(socket.SHUT_WR)
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _await_delivery(self) -> None:
        """Wait until the client's kernel has everything: a reset drops what is still queued here,
        which is all of a small body where the client is slow to read.
        """
        deadline = time.monotonic() + _DELIVERY_S
        while _queued_bytes(self.connection) and time.monotonic() < deadline:
            threading.Event().wait(0.001)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep the tests' output clean."""


def _queued_bytes(connection: socket.socket) -> int:
    """What was written and is not acknowledged yet. tcp(7), SIOCOUTQ."""
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", answer)[0])
