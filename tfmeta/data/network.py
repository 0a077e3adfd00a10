"""Whether a host can be reached, asked once before a library would try again and again."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit


def hosts_of(urls: Iterable[str]) -> list[str]:
    """Return the hosts that files are loaded from, in alphabetical order, as `https://host`."""
    parts = map(urlsplit, urls)
    return sorted({f"{x.scheme}://{x.netloc}" for x in parts if x.scheme in ("http", "https")})


def any_reachable(hosts: Iterable[str], seconds: float = 10.0) -> bool:
    """Return whether one of some hosts answers, whatever it says; or there is nothing to ask.

    It is asked the way that a download would go, through the proxies of the environment.

    Args:
        hosts: As of `hosts_of`.
        seconds: How long to wait for an answer.
    """
    hosts = list(hosts)
    answers: SimpleQueue[bool] = SimpleQueue()

    def ask(host: str) -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), None, seconds):
                answers.put(True)
        except urllib.error.HTTPError:  # which is an answer
            answers.put(True)
        except (OSError, ValueError):
            answers.put(False)

    # To look up a name has no limit of time: a thread that hangs is left, and ends no process late.
    for host in hosts:
        threading.Thread(target=ask, args=[host], daemon=True).start()
    try:
        return not hosts or any(answers.get(timeout=seconds) for _ in hosts)
    except Empty:
        return False
