"""Does `tfmeta serve` keep growing, or leave anything on the disk, however much it is asked?

    python benchmarks/page_soak.py RUN --json benchmarks/results/page_soak.json

Starts the command on a run of images and sends requests by 8 clients at once: tasks of 2 to 4
classes of 1 to 5 noisy pictures, questions about them, some tasks forgotten again, and one request
in five that must be refused. Its resident memory is read after each tenth, and what lies in its
temporary folder at the end. With `--models`, every 40th request fetches a model.
"""

from __future__ import annotations

import argparse
import base64
import collections
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLIENTS, PARTS = 8, 10
EXPECTED = {200, 204, 400, 403, 404, 413, 415, 421, 422}


def picture(random: np.random.Generator) -> str:
    file = io.BytesIO()
    pixels = random.integers(0, 256, random.integers(20, 200, 2), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def hostile(random: np.random.Generator) -> tuple[str, Any, dict[str, str]]:
    """Return path, body and headers of a request that must be refused."""
    damaged = picture(random)[:80]
    bodies: list[Any] = [
        random.bytes(10**5),
        b"[" * 10**5,
        b'{"support_x": [' + b"[]," * 10**6 + b"0]}",
        b" " * (10**7),
        {"classes": [{"name": "a", "images": [damaged]}]},
        {"classes": [{"name": "a" * 10**5, "images": []}] * 20},
        {"support_x": [[1e38] * 10**4], "support_y": [0]},
    ]
    headers = [{}, {"Host": "other.example"}, {"Origin": "null"}][random.integers(3)]
    return "/adapt", bodies[random.integers(len(bodies))], headers


class Asker:
    """Clients of a server, and what they were told."""

    def __init__(self, address: str, models: bool) -> None:
        self.address, self.models = address, models
        self.statuses: collections.Counter[int] = collections.Counter()
        self.tasks: collections.deque[str] = collections.deque(maxlen=32)
        self.lock = threading.Lock()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            headers = {"Content-Type": "application/json", **headers}
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            status, said = answer.status, answer.read()
        finally:
            connection.close()
        assert status in EXPECTED, (status, said[:300])
        with self.lock:
            self.statuses[status] += 1
        return json.loads(said) if status == 200 and path in ("/adapt", "/predict") else None

    def request(self, number: int) -> None:
        random = np.random.default_rng(number)
        known = self.tasks[number % len(self.tasks)] if self.tasks else "none"
        if self.models and number % 40 == 0:
            self.ask("GET", f"/tasks/{known}/model")
        elif number % 5 == 0:
            path, body, headers = hostile(random)
            self.ask("POST", path, body, **headers)
        elif number % 5 == 1:
            shots = random.integers(1, 6, random.integers(2, 5))
            classes = [
                {"name": f"class {i}", "images": [picture(random) for _ in range(n)]}
                for i, n in enumerate(shots)
            ]
            self.tasks.append(self.ask("POST", "/adapt", {"classes": classes})["task"])
        elif number % 15 == 2:
            self.ask("DELETE", f"/tasks/{known}")
        else:
            images = [picture(random) for _ in range(random.integers(1, 6))]
            self.ask("POST", "/predict", {"task": known, "images": images})


def memory(process: int) -> float:
    """Return the resident memory in megabytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--warm-up", type=int, default=400)
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "tfmeta", "serve", str(arguments.run.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder, "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("http"))
        asker = Asker(line.strip().removeprefix("http://"), arguments.models)
        rows = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(asker.request, range(1, arguments.warm_up)))
            asker.statuses.clear()
            began = time.monotonic()
            size = arguments.requests // PARTS
            for part in range(PARTS + 1):
                if part:
                    first = arguments.warm_up + (part - 1) * size
                    list(pool.map(asker.request, range(first, first + size)))
                rows.append({"requests": part * size, "resident_mb": memory(process.pid)})
                print(rows[-1], flush=True)
        seconds = round(time.monotonic() - began, 1)
        process.terminate()
        process.wait(timeout=60)
        left = sorted(path.name for path in Path(folder).rglob("*"))
    result = {
        "models": arguments.models,
        "warm_up": arguments.warm_up,
        "seconds": seconds,
        "statuses": {str(k): v for k, v in sorted(asker.statuses.items())},
        "growth_mb": round(rows[-1]["resident_mb"] - rows[0]["resident_mb"], 1),
        "files_left": left,
        "exit_code": process.returncode,
        "memory": rows,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "memory"}))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
