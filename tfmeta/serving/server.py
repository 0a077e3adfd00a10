"""Answers requests until it is told to end."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel

from tfmeta.serving.limits import Limits

# What has come when it is told to end is answered within so many seconds.
_GRACE = 10


def bound(host: str, port: int) -> socket.socket:
    """Return a socket of an address; nobody is answered yet.

    Raises:
        OSError: If there is no such address here, or it is taken.
    """
    made = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        raise OSError(
            f"--host and --port must be a free address of this machine. Received: {host!r} and "
            f"{port} ({error.strerror or error})"
        ) from error
    return made


def serve(
    app: Any,
    at: socket.socket,
    limits: Limits,
    stopping: threading.Event,
    each_second: Callable[[], None],
) -> None:
    """Answer until `stopping` is set, and then what has come by then.

    All that comes stays in memory.

    Args:
        app: What answers.
        at: The address.
        limits: How long a request may be, and how many there may be at once.
        stopping: Set by whoever wants an end, which comes within a second.
        each_second: Is called about once a second.
    """
    sockets: dict[int, Any] = {}
    # Or waitress says each time that a request has to wait for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    # A little too long is refused in JSON by the application; far too long is not even read.
    longest = 2 * limits.max_bytes
    server = create_server(
        app,
        map=sockets,
        sockets=[at],
        # Some are left to send others away.
        threads=limits.max_requests + 4,
        connection_limit=limits.max_requests + 36,
        max_request_body_size=longest,
        max_request_header_size=2**14,
        # Larger than anything that comes or goes: beyond these, waitress writes to files.
        inbuf_overflow=2**40,
        outbuf_overflow=2**40,
        outbuf_high_watermark=2**40,
        channel_timeout=30,
        cleanup_interval=5,
        asyncore_use_poll=True,
        ident="tfmeta",
    )
    while not stopping.is_set():
        wasyncore.loop(timeout=1, use_poll=True, map=sockets, count=1)
        each_second()
    wasyncore.dispatcher.close(server)  # who comes now is refused
    server.task_dispatcher.shutdown(timeout=_GRACE)
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and any(
        isinstance(x, HTTPChannel) and x.total_outbufs_len for x in sockets.values()
    ):
        wasyncore.loop(timeout=0.1, use_poll=True, map=sockets, count=1)
    wasyncore.close_all(sockets)


def stopping_on_signals() -> threading.Event:
    """Return what SIGTERM and Ctrl-C set; a second one ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, _: Any) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return stopping
