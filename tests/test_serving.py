"""The example server, in a process where this package cannot be imported."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.environments import python_with

REASON = "the example server needs the extra `serve`"
pytest.importorskip("flask", reason=REASON)
pytest.importorskip("waitress", reason=REASON)

SERVER = Path(__file__).parents[1] / "examples" / "server.py"
WAYS, SHOTS, QUERIES = 5, 2, 3
CLIENTS, CAPACITY, MAX_BYTES = 50, 64, 2**20


class Service:
    """An address, and how to ask there."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip().removeprefix("http://")

    def post(self, endpoint: str, body: Any) -> tuple[int, Any]:
        """Return the status and the answer."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("POST", endpoint, content)
            answer = connection.getresponse()
            return answer.status, json.load(answer)
        finally:
            connection.close()

    def memory(self) -> int:
        """Return the resident memory of the server in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def learner() -> tfmeta.MetaLearner:
    """A learner whose every weight differs between tasks, and whose queries do not mix."""
    keras.utils.set_random_seed(0)
    model = tfmeta.models.conv4((28, 28, 1), WAYS, filters=4, downsample="stride")
    learner = tfmeta.MAML(model, 0.5, 1, batch_norm="support")
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.build({"support_x": (1, WAYS * SHOTS, 28, 28, 1)})
    return learner


@pytest.fixture(scope="module")
def service(
    learner: tfmeta.MetaLearner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    learner.export(folder / "learner", class_names=list("abcde"))
    python = python_with(folder / "venv", "tensorflow", "flask", "waitress")
    options = ["--port", "0", "--capacity", CAPACITY, "--max-bytes", MAX_BYTES]
    command = [python, "-I", "-W", "ignore", SERVER, folder / "learner", *options]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    without = [python, "-I", "-c", "import tfmeta"]
    alone = subprocess.run([*map(str, without)], env=variables, capture_output=True, text=True)
    assert "No module named 'tfmeta'" in alone.stderr
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*map(str, command)], env=variables, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield Service(process)
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def tasks() -> list[dict[str, Any]]:
    """A task for each client, as JSON has it."""
    random = np.random.default_rng(0)
    return [
        {
            "support_x": random.random((WAYS * SHOTS, 28, 28, 1), np.float32).tolist(),
            "support_y": random.permutation(np.repeat(np.arange(WAYS), SHOTS)).tolist(),
            "query_x": random.random((QUERIES, 28, 28, 1), np.float32).tolist(),
        }
        for _ in range(CLIENTS)
    ]


def support(task: dict[str, Any]) -> dict[str, Any]:
    return {name: task[name] for name in ("support_x", "support_y")}


def asked(service: Service, endpoint: str, body: Any) -> Any:
    status, answer = service.post(endpoint, body)
    assert status == 200, answer
    return answer


def test_fifty_clients_at_once_get_what_each_would_alone(
    service: Service, learner: tfmeta.MetaLearner, tasks: list[dict[str, Any]]
) -> None:
    """All adapt before any predicts, so that all tasks are there together."""
    compiled = tf.function(learner)
    together = threading.Barrier(CLIENTS, timeout=120)

    def alone(task: dict[str, Any], query_x: Any) -> Any:
        given = {
            "query_x": np.float32(query_x)[None],
            "support_y": np.array(task["support_y"])[None],
        }
        return compiled({**given, "support_x": np.float32(task["support_x"])[None]})[0].numpy()

    def client(task: dict[str, Any]) -> tuple[str, list[Any]]:
        together.wait()
        number = asked(service, "/adapt", support(task))["task"]
        together.wait()
        body = {"task": number, "query_x": task["query_x"]}
        return number, [asked(service, "/predict", body) for _ in range(2)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(client, tasks))
    assert len({number for number, _ in answers}) == CLIENTS
    expected = [alone(task, task["query_x"]) for task in tasks]
    for i, (_, both) in enumerate(answers):
        assert both[0] == both[1]
        np.testing.assert_allclose(both[0]["predictions"], expected[i], atol=1e-5)
        assert both[0]["labels"] == ["abcde"[k] for k in expected[i].argmax(axis=-1)]
    # Another client's task would have been seen.
    for task in tasks[1:]:
        assert np.abs(alone(task, tasks[0]["query_x"]) - expected[0]).max() > 1e-2


def test_the_task_not_asked_for_longest_gives_way(
    service: Service, tasks: list[dict[str, Any]]
) -> None:
    query_x = tasks[0]["query_x"]
    first, second, *others = (
        asked(service, "/adapt", support(tasks[i % CLIENTS]))["task"] for i in range(CAPACITY)
    )
    expected = asked(service, "/predict", {"task": first, "query_x": query_x})
    newest = asked(service, "/adapt", support(tasks[1]))["task"]
    for task in (first, others[0], newest):
        asked(service, "/predict", {"task": task, "query_x": query_x})
    status, answer = service.post("/predict", {"task": second, "query_x": query_x})
    assert status == 404
    assert "adapt again" in answer["error"]
    assert asked(service, "/predict", {"task": first, "query_x": query_x}) == expected


X = np.zeros((WAYS, 28, 28, 1)).tolist()
Y = list(range(WAYS))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be JSON"),
        (b'{"support_x": [', "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        (b"[" * 10**5, "must be JSON"),
        ([X, Y], "an object of support_x, support_y. Received: list"),
        ({"support_x": X}, "an object of support_x, support_y. Received: ['support_x']"),
        ({"support_x": X, "support_y": Y, "more": 1}, "Received: ['more', 'support_x'"),
        ({"support_x": X[0], "support_y": Y}, "shape [n, 28, 28, 1] that the model takes. Rec"),
        ({"support_x": [], "support_y": []}, "shape [n, 28, 28, 1] that the model takes. Rec"),
        ({"support_x": [[1, 2], [3]], "support_y": Y}, "`support_x` must be nested lists of the"),
        ({"support_x": "drawing", "support_y": Y}, "`support_x` must be float32 numbers. Rec"),
        ({"support_x": None, "support_y": Y}, "`support_x` must be float32 numbers"),
        ({"support_x": [[[[1e39]]]], "support_y": Y}, "float32 numbers. Received: 1e+39"),
        ({"support_x": [[[[float("nan")]]]], "support_y": Y}, "float32 numbers. Received: nan"),
        ({"support_x": X, "support_y": Y[:3]}, "same length, at least 1. Received: lengths 5 and"),
        ({"support_x": X, "support_y": 0}, "`support_y` must have the shape [n]."),
        ({"support_x": X, "support_y": [0.5] * 5}, "must be int64 numbers. Received: float64"),
        ({"support_x": X, "support_y": [True] * 5}, "must be int64 numbers. Received: bool"),
        ({"support_x": X, "support_y": [2**63] * 5}, "int64 numbers. Received: 92233720368547"),
        ({"support_x": X, "support_y": [5] * 5}, "the class numbers 0..4, as the model has 5"),
    ],
)
def test_bad_support_sets_are_refused_in_words(body: Any, message: str, service: Service) -> None:
    status, answer = service.post("/adapt", body)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"query_x": X[0]}, 400, "`query_x` must have the shape [n, 28, 28, 1]"),
        ({"query_x": []}, 400, "`query_x` must have the shape [n, 28, 28, 1]"),
        ({"query_x": ["a"]}, 400, "`query_x` must be float32 numbers"),
        ({"task": "another"}, 404, "`task` must be an id"),
        ({"task": 3}, 404, "`task` must be an id"),
        ({"more": 3}, 400, "an object of query_x, task"),
    ],
)
def test_bad_queries_are_refused_in_words(
    changed: Any, status: int, message: str, service: Service, tasks: list[dict[str, Any]]
) -> None:
    task = asked(service, "/adapt", support(tasks[0]))["task"]
    given, answer = service.post("/predict", {"task": task, "query_x": X, **changed})
    assert given == status
    assert message in answer["error"]


def test_what_is_too_long_or_elsewhere(service: Service) -> None:
    assert service.post("/adapt", b" " * MAX_BYTES)[0] == 400
    assert service.post("/adapt", b" " * (MAX_BYTES + 1))[0] == 413
    assert service.post("/elsewhere", {})[0] == 404


@pytest.mark.slow
def test_memory_does_not_grow(service: Service, tasks: list[dict[str, Any]]) -> None:
    """In 2,000 requests, after enough to fill the store."""

    def client(i: int) -> None:
        status = 404
        while status == 404:  # fifty others may have filled the store meanwhile
            task = asked(service, "/adapt", support(tasks[i % CLIENTS]))["task"]
            body = {"task": task, "query_x": tasks[i % CLIENTS]["query_x"]}
            status, answer = service.post("/predict", body)
        assert status == 200, answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(100)))
        before = service.memory()
        list(pool.map(client, range(1000)))
    after = service.memory()
    assert after - before < 0.05 * before, (before, after)
