"""Commands that are killed at random moments: `python -m tests.killed LOG` runs one a line.

A line is the JSON of a delay in seconds, or null for none, and the arguments of `tfmeta`. For each
a child of this process is forked, which has imported everything and begun nothing, so that a kill
costs no import. The answer is a line with the child's exit status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from tfmeta.cli import main


def run(arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    try:
        main(arguments, "tfmeta")
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(int(ended.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def killed_after(child: int, delay: float | None) -> int:
    until = None if delay is None else time.monotonic() + delay
    while True:
        ended, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until = None
        time.sleep(0.001)


if __name__ == "__main__":
    import keras  # noqa: F401
    import optuna  # noqa: F401
    import sqlalchemy  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        delay, arguments = json.loads(line)
        child = os.fork()
        if not child:
            run(arguments, sys.argv[1])
        print(killed_after(child, delay), flush=True)
