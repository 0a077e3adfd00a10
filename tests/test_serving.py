"""The example server, in a process where this package cannot be imported."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
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
NAMES = ["α", "ж", "字", "🂡", "e"]


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

    def half(self, sent: bytes, length: int = 1000) -> socket.socket:
        """Return a connection on which a request is begun, and a part of its body sent."""
        host, port = self.address.split(":")
        connection = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST /adapt HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + sent)
        return connection

    def memory(self, what: str = "VmRSS") -> int:
        """Return the resident memory of the server in bytes, or the most that it was (VmHWM)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(what))
        return int(line.split()[1]) * 1024


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
def exported(
    learner: tfmeta.MetaLearner, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An interpreter without this package, and a model."""
    folder = tmp_path_factory.mktemp("service")
    learner.export(folder / "learner", class_names=NAMES)
    python = python_with(folder / "venv", "tensorflow", "flask", "waitress")
    without = [python, "-I", "-c", "import tfmeta"]
    alone = subprocess.run([*map(str, without)], env=BARE, capture_output=True, text=True)
    assert "No module named 'tfmeta'" in alone.stderr
    return python, folder / "learner"


BARE = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


@contextlib.contextmanager
def started(python: Path, model: Path, **options: int) -> Iterator[Service]:
    given = [str(x) for k, v in options.items() for x in (f"--{k.replace('_', '-')}", v)]
    command = [str(python), "-I", "-W", "ignore", str(SERVER), str(model), "--port", "0", *given]
    with (model.parent / "log").open("w") as log:
        process = subprocess.Popen(command, env=BARE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield Service(process)
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def service(exported: tuple[Path, Path]) -> Iterator[Service]:
    with started(*exported, capacity=CAPACITY, max_bytes=MAX_BYTES) as service:
        yield service


CONNECTIONS, SECONDS = 16, 1


@pytest.fixture(scope="module")
def narrow(exported: tuple[Path, Path]) -> Iterator[Service]:
    """A service of tight bounds."""
    bounds = {"max_numbers": 20_000, "max_examples": 12, "timeout": SECONDS}
    with started(*exported, max_connections=CONNECTIONS, **bounds) as service:
        yield service


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
        assert both[0]["labels"] == [NAMES[k] for k in expected[i].argmax(axis=-1)]
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
        ({"support_x": X, "support_y": [0.5] * 5}, "must be int64 numbers. Received: float"),
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


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (
            {"support_x": [X[0]] * 13, "support_y": [0] * 13},
            413,
            "`support_x` must be at most 12 e",
        ),
        ({"support_x": X, "support_y": [0] * 13}, 413, "`support_y` must be at most 12 examples"),
        (
            {"support_x": [[0] * 20_001], "support_y": [0]},
            413,
            "`support_x` must be at most 20000 n",
        ),
        (b"[" + b"0," * 70_000 + b"0]", 413, "The request must have at most 20000 numbers"),
        (b"[" + b"[]," * 40_000 + b"0]", 413, "The request must have at most 20000 numbers"),
        # NumPy would give each of these as much room as the longest.
        ({"support_x": ["x" * 10**6, *"y" * 10**4], "support_y": [0]}, 413, "at most 12 examples"),
        ({"support_x": [["x" * 10**6, *"y" * 10**4]], "support_y": [0]}, 400, "Received: str"),
        ({"support_x": X, "support_y": [10**400] * 5}, 400, "int64 numbers. Received: 1000000"),
        ({"support_x": [[[[10**400]]]], "support_y": [0]}, 400, "float32 numbers. Received: 1000"),
        ({"support_x": [[[[1e38]]] * 784], "support_y": [0]}, 400, "must have the shape"),
        (
            {"support_x": (np.array(X) + 1e38).tolist(), "support_y": Y},
            400,
            "must be finite, and so",
        ),
        ({"name" * 10**5: 0}, 400, "Received: ['name"),
    ],
    ids=lambda x: "" if isinstance(x, dict | bytes) else None,
)
def test_what_is_too_much_is_refused_and_takes_no_memory(
    body: Any, status: int, message: str, narrow: Service
) -> None:
    narrow.post("/adapt", {"support_x": X, "support_y": Y})
    before = narrow.memory("VmHWM")
    given, answer = narrow.post("/adapt", body)
    assert given == status, answer
    assert message in answer["error"]
    assert len(answer["error"]) < 500
    assert narrow.memory("VmHWM") - before < 2**27


def test_who_is_slow_is_cut_off_and_stops_nobody(narrow: Service) -> None:
    """Half requests, connections without one, and more of them than there may be."""
    with contextlib.ExitStack() as slow:
        for _ in range(CONNECTIONS):
            place = slow.enter_context(narrow.half(b"{")).getpeername()
        for _ in range(4 * CONNECTIONS):
            slow.enter_context(socket.create_connection(place))
        began = time.monotonic()
        for _ in range(3):
            asked(narrow, "/adapt", {"support_x": X, "support_y": Y})
        assert time.monotonic() - began < 10 * SECONDS
    # The last that is begun is pushed out by nobody, and is never silent.
    with narrow.half(b"{") as last:
        began, cut = time.monotonic(), False
        while not cut and time.monotonic() - began < 20 * SECONDS:
            time.sleep(SECONDS / 10)
            try:
                last.sendall(b" ")
            except OSError:
                cut = True
    assert cut
    assert time.monotonic() - began > SECONDS / 2


class Blocked:
    """A signature that waits."""

    structured_input_signature = (
        (),
        {k: tf.TensorSpec([None]) for k in ("support_x", "support_y")},
    )

    def __init__(self) -> None:
        self.go, self.inside = threading.Event(), threading.Semaphore(0)

    def __call__(self, **given: Any) -> Any:
        self.inside.release()
        assert self.go.wait(60)
        return given


def test_more_than_may_wait_are_sent_away_in_words() -> None:
    server, blocked = runpy.run_path(str(SERVER)), Blocked()
    model = types.SimpleNamespace(signatures={"adapt": blocked, "predict": blocked})
    app = server["make_app"](model, server["Bounds"](threads=2, max_waiting=3))

    def client(_: Any) -> Any:
        return app.test_client().post("/adapt", json={"support_x": [1], "support_y": [1]})

    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(client, None) for _ in range(20)]
        while sum(answer.done() for answer in asked) < 15:
            time.sleep(0.01)
        for _ in range(2):
            assert blocked.inside.acquire(timeout=60)
        assert not blocked.inside.acquire(blocking=False)  # two are computed and three wait
        blocked.go.set()
    answers = [answer.result() for answer in asked]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 15
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert "try again" in refused.json["error"]
    assert refused.headers["Retry-After"] == "1"
    assert client(None).status_code == 200


def test_what_is_kept_has_a_bound_of_bytes_too() -> None:
    tasks = runpy.run_path(str(SERVER))["Tasks"](capacity=100, max_bytes=1000)
    ids = [tasks.add({"a": tf.zeros(50), "b": tf.zeros((25, 2))}) for _ in range(4)]
    assert [tasks.find(x) is not None for x in ids] == [False, False, True, True]
    large = tasks.add({"a": tf.zeros(1000)})
    assert [tasks.find(x) for x in [*ids, large]] == [None] * 5
    assert tasks.bytes == 0


def test_after_sigterm_what_has_come_is_answered_and_nothing_more_taken(
    exported: tuple[Path, Path],
) -> None:
    body = json.dumps({"support_x": X, "support_y": Y}).encode()
    with contextlib.ExitStack() as opened:
        service = opened.enter_context(started(*exported, grace=30))
        idle = http.client.HTTPConnection(service.address)
        opened.callback(idle.close)
        idle.request("POST", "/adapt", body)
        assert idle.getresponse().read()
        half = [opened.enter_context(service.half(body[:-9], len(body))) for _ in range(3)]
        # Some of these are computed, some wait, and some are not even read.
        whole = [opened.enter_context(service.half(body, len(body))) for _ in range(20)]
        service.process.terminate()
        place, refused = half[0].getpeername(), False
        while not refused:
            # Not at once: of too many connections the one that is idle longest is closed.
            time.sleep(0.05)
            try:
                socket.create_connection(place).close()
            except (ConnectionRefusedError, ConnectionResetError):
                refused = True
        for connection in half:
            connection.sendall(body[-9:])
        for connection in [*half, *whole]:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            assert json.load(answer)["task"]
        assert idle.sock is None or idle.sock.recv(1) == b""
        assert service.process.wait(timeout=20) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost", "strange", "no list"])
def test_a_damaged_export_is_named_and_not_served(
    damage: str, exported: Any, tmp_path: Path
) -> None:
    """By `load`, without a process for each."""
    load = runpy.run_path(str(SERVER))["load"]
    files = sorted(x for x in exported[1].rglob("*") if x.is_file())
    assert len(files) == 5
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(exported[1], folder)
        name = file.relative_to(exported[1]).as_posix()
        content = bytearray(file.read_bytes())
        if damage == "strange":
            name = "variables/variables.data-00001-of-00002"
        elif damage == "no list":
            name = "assets.extra/SHA256SUMS"
        elif damage == "cut":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1 << number
        (folder / name).write_bytes(content)
        if damage in ("lost", "no list"):
            (folder / name).unlink()
        expected = "is damaged: it is not as|must be what `learner.export` wrote; it has no assets"
        with pytest.raises(ValueError, match=expected) as caught:
            load(folder)
        # With a list that is damaged it is the first file that is not in it as it is.
        assert name in str(caught.value) or "SHA256SUMS" in name
    (folder / "assets.extra" / "SHA256SUMS").write_bytes(files[0].read_bytes())


@pytest.mark.slow
def test_what_is_no_exported_learner_is_not_served(tmp_path: Path) -> None:
    command = [sys.executable, str(SERVER), str(tmp_path / "nowhere"), "--port", "0"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert f"'{tmp_path / 'nowhere'}' must be what `learner.export` wrote" in ran.stderr
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    tfmeta.export.saved_model(model, tmp_path / "adapted")
    with pytest.raises(ValueError, match="must be an exported learner, and not an adapted model"):
        runpy.run_path(str(SERVER))["load"](tmp_path / "adapted")


def hostile(service: Service, random: np.random.Generator) -> int | None:
    """Do one of what no client should; return the status, where there is an answer."""
    whole = json.dumps({"support_x": X, "support_y": Y}).encode()
    bodies: list[Any] = [
        b"[" + b"[]," * 10**5 + b"0]",
        b"{" + b'"a":{' * 10**4,
        random.bytes(10**5),
        whole[: random.integers(len(whole))],
        {"support_x": [["x" * 10**5, *"y" * 10**4]], "support_y": [0]},
        {"support_x": [X[0]] * 1000, "support_y": [0] * 1000},
        {"support_x": (np.array(X) + 1e38).tolist(), "support_y": Y},
        {"support_x": X, "support_y": [float("nan")] * WAYS},
        {"support_x": X, "support_y": [10**400] * WAYS},
        b" " * (3 * MAX_BYTES),
    ]
    way = int(random.integers(len(bodies) + 3))
    if way < len(bodies):
        try:
            return service.post("/adapt", bodies[way])[0]
        except (OSError, http.client.HTTPException, ValueError):  # it is closed while it is sent
            return None
    # Half, whole but not read, and nothing at all.
    with service.half([whole[:100], whole, b""][way - len(bodies)], len(whole)):
        time.sleep(random.random() / 10)
    return None


@pytest.mark.slow
def test_hostile_clients_among_fifty_change_no_answer_and_no_memory(
    service: Service, learner: tfmeta.MetaLearner, tasks: list[dict[str, Any]]
) -> None:
    """2,000 requests, after enough to fill the store and TensorFlow's pool."""
    expected, compiled = [], tf.function(learner)
    for task in tasks:
        given = {k: np.array(v)[None] for k, v in task.items()}
        given = {k: np.float32(v) if k.endswith("_x") else v for k, v in given.items()}
        expected.append(np.asarray(compiled(given))[0])

    def client(i: int) -> int | None:
        if i % 4 == 3:
            return hostile(service, np.random.default_rng(i))
        status = 404
        while status in (404, 503):  # fifty others may have filled the store meanwhile
            status, answer = service.post("/adapt", support(tasks[i % CLIENTS]))
            if status == 200:
                body = {"task": answer["task"], "query_x": tasks[i % CLIENTS]["query_x"]}
                status, answer = service.post("/predict", body)
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected[i % CLIENTS], atol=1e-5)
        return 200

    def round_of(requests: int) -> tuple[float, collections.Counter[int | None]]:
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            statuses = collections.Counter(pool.map(client, range(requests)))
        return time.monotonic() - began, statuses

    round_of(500)
    before = service.memory()
    seconds, statuses = round_of(2000)
    after = service.memory()
    print(f"{before >> 20} MB, {after >> 20} MB, {seconds:.0f} s, {dict(statuses)}")
    assert statuses[200] >= 1500
    assert set(statuses) <= {200, 400, 413, 503, None}
    assert after - before < 0.05 * before, (before, after)
