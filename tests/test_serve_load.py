"""`tfmeta serve` under many clients at once, and from its start to its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flask", reason="`tfmeta serve` needs the extra `serve`")
pytest.importorskip("waitress", reason="`tfmeta serve` needs the extra `serve`")

from tests.served import IMAGES, asked, classes_of, drawing, prototypical, serving, text_of
from tests.test_cli import ANY_WAYS, tfmeta, write_images
from tfmeta.serving.limits import Limits
from tfmeta.serving.service import Service

pytestmark = pytest.mark.slow

CLIENTS = 50


def test_fifty_clients_at_once_get_what_each_would_alone() -> None:
    """Each with classes of its own, of other sizes and names; all adapt before any asks."""
    service, limits = Service(prototypical(), IMAGES), Limits(max_tasks=CLIENTS)
    together = threading.Barrier(CLIENTS, timeout=120)
    given = []
    for number in range(CLIENTS):
        random = np.random.default_rng(number)
        names = {f"{number}-{i}": 1 + (number + i) % 3 for i in range(2 + number % 4)}
        queries = [text_of(drawing(random)) for _ in range(1 + number % 5)]
        given.append((classes_of(random, **names), queries))

    with serving(service, limits) as address:

        def ask(path: str, body: Any) -> Any:
            status = 503
            while status == 503:
                status, answer = asked(address, "POST", path, body)
            assert status == 200, answer
            return answer

        def alone(classes: Any, queries: Any) -> Any:
            task = ask("/adapt", {"classes": classes})["task"]
            return ask("/predict", {"task": task, "images": queries})

        def client(classes: Any, queries: Any) -> Any:
            together.wait()
            task = ask("/adapt", {"classes": classes})["task"]
            together.wait()
            answers = [ask("/predict", {"task": task, "images": queries}) for _ in range(3)]
            assert answers[0] == answers[1] == answers[2]
            return answers[0]

        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(client, *zip(*given, strict=True)))
        for (classes, queries), answer in zip(given, answers, strict=True):
            expected = alone(classes, queries)
            assert answer["labels"] == expected["labels"]
            assert set(answer["labels"]) <= {each["name"] for each in classes}
            np.testing.assert_allclose(answer["predictions"], expected["predictions"], rtol=1e-5)
            assert [len(row) for row in answer["predictions"]] == [len(classes)] * len(queries)


def test_from_training_to_the_end(tmp_path: Path) -> None:
    """The command on a run: an answer that may be 'unknown', its page, and SIGTERM amid work."""
    photos = write_images(tmp_path / "photos", 24, images=6)
    run = tmp_path / "run"
    words = ("--algorithm", "prototypical", "--ways", 3, "--epochs", 1, *ANY_WAYS)
    tfmeta("train", photos, *words, "--output", run)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command = [sys.executable, "-m", "tfmeta", "serve", run, "--port", 0]
    command += ["--false-acceptance", 0.2, "--max-requests", 4]
    (tmp := tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("http"))
        host, port = re.fullmatch(r"http://(.*):(\d+)\n", line).groups()  # type: ignore[union-attr]
        assert host == "127.0.0.1"
        address = host, int(port)
        assert asked(address, "GET", "/")[1].startswith(b"<!doctype html>")
        facts = asked(address, "GET", "/info")[1]
        assert facts["unknown"] is True
        files = [sorted((photos / f"class{c}").iterdir()) for c in range(2)]
        classes = [
            {"name": f"é{c}", "images": [text_of(file.read_bytes()) for file in of[:3]]}
            for c, of in enumerate(files)
        ]
        status, task = asked(address, "POST", "/adapt", {"classes": classes})
        assert status == 200, task
        assert 0 <= task["unknown"]["false_acceptance"] <= 0.2
        body = {"task": task["task"], "images": [text_of(of[5].read_bytes()) for of in files]}
        status, answer = asked(address, "POST", "/predict", body)
        assert status == 200
        assert answer["likeliest"] == ["é0", "é1"]
        with ThreadPoolExecutor(4) as pool:
            last = [pool.submit(asked, address, "POST", "/predict", body) for _ in range(4)]
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            statuses = []
            for each in last:
                try:
                    statuses.append(each.result()[0])
                except OSError:  # it came after the end
                    statuses.append(None)
        assert set(statuses) <= {200, None}
        assert process.wait(timeout=60) == 0
        assert process.stdout.read().endswith("Ended.\n")
    finally:
        process.kill()
        process.communicate()
    # AutoGraph's files go when a process ends.
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != tmp}
    assert after == before
