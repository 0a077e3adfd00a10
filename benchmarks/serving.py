"""What does a call of an exported learner cost, and what a request to the example server?

5-way 5-shot tasks of Omniglot, Conv4 with 64 filters: MAML with 1 and 5 inner steps and
Prototypical Networks. `latency` times the signatures of the SavedModel beside the same through
Python, by turns. `http` starts `examples/server.py` and lets 50 clients adapt and predict at once.
The weights are not trained, which costs the same. Usage:

    python benchmarks/serving.py latency DATA_DIR --json RESULTS.json
    python benchmarks/serving.py http DATA_DIR --json RESULTS.json
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta

WAYS, SHOTS, QUERIES = 5, 5, 15
SERVER = Path(__file__).parents[1] / "examples" / "server.py"


def maml(steps: int) -> tfmeta.MetaLearner:
    return tfmeta.MAML(tfmeta.models.conv4((28, 28, 1), WAYS), 0.1, steps, batch_norm="support")


LEARNERS: dict[str, Callable[[], tfmeta.MetaLearner]] = {
    "PrototypicalNetwork": lambda: tfmeta.PrototypicalNetwork(tfmeta.models.conv4((28, 28, 1))),
    "MAML, 1 step": lambda: maml(1),
    "MAML, 5 steps": lambda: maml(5),
}


def made(name: str) -> tfmeta.MetaLearner:
    keras.utils.set_random_seed(0)
    learner = LEARNERS[name]()
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.build({"support_x": (1, WAYS * SHOTS, 28, 28, 1)})
    return learner


def latency(name: str, sampler: Any, calls: int, only: str, folder: Path) -> dict[str, Any]:
    """Return milliseconds of each kind of call, and the sizes of the files."""
    learner = made(name)
    learner.export(folder / "learner")
    batches = [sampler.batch(step)[0] for step in range(10)]
    x, y, q = ([b[k][0] for b in batches] for k in ("support_x", "support_y", "query_x"))
    adapted = learner.adapt(x[0], y[0])
    tfmeta.export.saved_model(adapted, folder / "adapted")

    signatures = tf.saved_model.load(folder / "learner").signatures
    one_task = tf.saved_model.load(folder / "adapted").signatures["serving_default"]
    support = [
        {"support_x": tf.constant(a), "support_y": tf.constant(b, tf.int64)}
        for a, b in zip(x, y, strict=True)
    ]
    queries = [tf.constant(a) for a in q]
    states = [signatures["adapt"](**s) for s in support]
    tasks = [{k: tf.constant(v) for k, v in batch.items()} for batch in batches]
    both, compiled = signatures["adapt_and_predict"], tf.function(learner)
    kinds: dict[str, Callable[[int], Any]] = {
        "adapt, SavedModel": lambda i: signatures["adapt"](**support[i]),
        "adapt, learner.adapt": lambda i: learner.adapt(x[i], y[i]),
        "adapt and predict 75, SavedModel": lambda i: both(**support[i], query_x=queries[i]),
        "adapt and predict 75, tf.function(learner)": lambda i: compiled(tasks[i]),
    }
    for size in (1, len(q[0])):

        def predict(i: int, size: int = size) -> Any:
            return signatures["predict"](query_x=queries[i][:size], **states[i])

        def predict_one_task(i: int, size: int = size) -> Any:
            return one_task(query_x=queries[i][:size])

        def predict_keras(i: int, size: int = size) -> Any:
            return adapted.predict(q[i][:size], verbose=0)

        def call_keras(i: int, size: int = size) -> Any:
            return adapted(queries[i][:size], training=False)

        kinds[f"predict {size}, SavedModel"] = predict
        kinds[f"predict {size}, SavedModel of the adapted model"] = predict_one_task
        kinds[f"predict {size}, adapted.predict"] = predict_keras
        kinds[f"predict {size}, adapted(...)"] = call_keras
    kinds = {kind: function for kind, function in kinds.items() if kind.startswith(only)}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for call in range(-5, calls):
        for kind, function in kinds.items():
            start = time.perf_counter()
            function(call % 10)
            if call >= 0:
                times[kind].append(1000 * (time.perf_counter() - start))
    return {
        "milliseconds": {
            kind: {"median": float(np.median(t)), "p99": float(np.percentile(t, 99))}
            for kind, t in times.items()
        },
        "state_bytes": sum(v.numpy().nbytes for v in states[0].values()),
        "file_bytes": {path.name: size_of(path) for path in sorted(folder.iterdir())},
    }


def size_of(folder: Path) -> int:
    return sum(part.stat().st_size for part in folder.rglob("*") if part.is_file())


def over_http(name: str, sampler: Any, requests: int, clients: int, folder: Path) -> dict[str, Any]:
    """Return requests a second, their latency and the server's memory before, amid and after."""
    # Images are sent as whole numbers, as files have them.
    made(name).export(folder / "learner", preprocessing=tfmeta.export.Preprocessing(28, True))
    server = subprocess.Popen(
        [sys.executable, SERVER, folder / "learner", "--port", "0", "--capacity", "100"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    address = server.stdout.readline().strip().removeprefix("http://")
    tasks = []
    for step in range(clients):
        inputs = {k: v[0] for k, v in sampler.batch(step)[0].items()}
        images = {k: np.rint(255 * v).astype(int).tolist() for k, v in inputs.items() if "x" in k}
        support = {"support_x": images["support_x"], "support_y": inputs["support_y"].tolist()}
        tasks.append((json.dumps(support).encode(), json.dumps(images["query_x"])))

    def post(endpoint: str, body: bytes) -> tuple[Any, float]:
        start = time.perf_counter()
        connection = http.client.HTTPConnection(address, timeout=300)
        connection.request("POST", endpoint, body)
        answer = connection.getresponse()
        content = json.load(answer)
        connection.close()
        assert answer.status == 200, content
        return content, 1000 * (time.perf_counter() - start)

    def client(number: int) -> tuple[float, float]:
        support, queries = tasks[number % clients]
        answer, adapting = post("/adapt", support)
        body = b'{"task": "%b", "query_x": %b}' % (answer["task"].encode(), queries.encode())
        return adapting, post("/predict", body)[1]

    def memory() -> float:
        pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    try:
        numbers = itertools.count()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, itertools.islice(numbers, 100)))
            resident, waits, seconds = [memory()], [], 0.0
            for _ in range(4):
                start = time.perf_counter()
                waits += pool.map(client, itertools.islice(numbers, requests // 8))
                seconds += time.perf_counter() - start
                resident.append(memory())
    finally:
        server.terminate()
        server.wait()
    adapting, predicting = np.array(waits).T
    return {
        "requests": 2 * len(waits),
        "requests_per_second": 2 * len(waits) / seconds,
        "body_bytes": {"adapt": len(tasks[0][0]), "predict": len(tasks[0][1])},
        "milliseconds": {
            kind: {"median": float(np.median(t)), "p99": float(np.percentile(t, 99))}
            for kind, t in (("adapt", adapting), ("predict", predicting))
        },
        "resident_mib": resident,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["latency", "http"])
    parser.add_argument("data_dir")
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--only", default="", help="calls that begin so: adapt or predict")
    parser.add_argument("--requests", type=int, default=2000, help="after 200 to warm up")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    test = tfmeta.data.load("omniglot", data_dir=arguments.data_dir)[2]
    sampler = tfmeta.data.EpisodeSampler(test, WAYS, SHOTS, QUERIES, seed=0)
    found = (
        json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    )
    for name in arguments.learners:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.part == "latency":
                facts = latency(name, sampler, arguments.calls, arguments.only, Path(folder))
            else:
                facts = over_http(
                    name, sampler, arguments.requests, arguments.clients, Path(folder)
                )
        print(name, json.dumps(facts, indent=2), flush=True)
        found.setdefault(arguments.part, {})[name] = facts
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
