"""Several workers on one machine: the same command, once for each, on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfmeta.locks import INHERITED

# In seconds: how long the others may take to stop by themselves when one has ended.
GRACE = 60.0
_COMMAND = [sys.executable, "-m", "tfmeta"]


def start_workers(count: int, folder: Path, lock: Mapping[str, str] | None = None) -> int:
    """Run this command in `count` workers, and return the exit status of the first that failed.

    Each writes to `worker_0.log` and so on in `folder`; what the first one writes is shown as well.
    SIGINT and SIGTERM are passed on, and no worker is left behind.

    Args:
        count: How many.
        folder: Where to write their logs.
        lock: What tells them that this process holds the folder, which they then hold as well.
    """
    lock = lock or {}
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"worker_{i}.log" for i in range(count)]
    print(f"{count} workers write to {logs[0]} ... {logs[-1].name}; this is the first one's:")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with passing_on_signals(processes):
            for i, log in enumerate(logs):
                task = {"type": "worker", "index": i}
                config = {"cluster": {"worker": addresses}, "task": task}
                log.unlink(missing_ok=True)  # what a link of that name leads to stays as it is
                with log.open("xb") as file:
                    process = subprocess.Popen(
                        [*_COMMAND, *sys.argv[1:]],
                        env={**os.environ, **lock, "TF_CONFIG": json.dumps(config)},
                        pass_fds=[int(lock[INHERITED])] if lock else [],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # the terminal's Ctrl-C comes through here
                    )
                processes.append(process)
            return _watched(processes, logs)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def passing_on_signals(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Send SIGINT and SIGTERM on to processes."""

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(processes: list[subprocess.Popen[bytes]], logs: list[Path]) -> int:
    """Show what the first worker writes until all have ended."""
    failed: int | None = None
    deadline = None
    with logs[0].open("rb") as shown:
        while True:
            running = [process.poll() is None for process in processes]
            sys.stdout.write(shown.read().decode(errors="replace"))
            sys.stdout.flush()
            for i, process in enumerate(processes):
                if failed is None and process.poll():
                    failed = i
                    print(f"\nWorker {i} has ended with status {_status(process)}: see {logs[i]}")
            if not any(running):
                break
            if not all(running):
                deadline = deadline or time.monotonic() + GRACE
                if time.monotonic() > deadline:
                    left = [i for i, runs in enumerate(running) if runs]
                    print(f"\nWorkers {left} did not stop within {GRACE:.0f} s and are killed.")
                    return 1 if failed is None else _status(processes[failed])
            time.sleep(0.1)
    return 0 if failed is None else _status(processes[failed])


def _status(process: subprocess.Popen[bytes]) -> int:
    """Return an exit status as shells have it: 128 and the signal for one that was killed."""
    code = process.returncode
    return 128 - code if code < 0 else code
