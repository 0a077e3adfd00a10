"""What the tests of `tfmeta.serving` have in common: a small learner, and images for it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from PIL import Image

import tfmeta
from tfmeta.serving import server
from tfmeta.serving.app import make_app
from tfmeta.serving.limits import Limits
from tfmeta.serving.service import Service
from tfmeta.serving.tasks import Tasks

SIDE, DIMENSIONS = 12, 5
IMAGES = {"size": [SIDE, SIDE], "grayscale": True, "invert": True}


def prototypical() -> tfmeta.MetaLearner:
    """An embedding that NumPy computes in a line: `x W + b`."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(DIMENSIONS)]
    learner = tfmeta.PrototypicalNetwork(keras.Sequential(layers))
    learner.build({"support_x": (1, 2, SIDE, SIDE, 1)})
    return learner


def tasks_of(limits: Limits) -> Tasks:
    return Tasks(limits.max_tasks, limits.max_kept_megabytes * 10**6, 60 * limits.minutes)


def file_of(pixels: Any, kind: str = "PNG") -> bytes:
    """Return an image file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind)
    return file.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def drawing(random: np.random.Generator, shape: tuple[int, ...] = (20, 17)) -> bytes:
    """Return a file of noise."""
    return file_of(random.integers(0, 256, shape))


def classes_of(random: np.random.Generator, **shots: int) -> list[dict[str, Any]]:
    """Return so many drawings of each class, as `/adapt` takes them."""
    return [
        {"name": name, "images": [text_of(drawing(random)) for _ in range(number)]}
        for name, number in shots.items()
    ]


def asked(
    address: tuple[str, int], method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """Return status and answer of a real server; the answer as JSON where it is such."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        headers = {"Content-Type": "application/json", **headers}
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    is_json = answer.headers.get("Content-Type") == "application/json"
    return answer.status, json.loads(said) if is_json else said


@contextlib.contextmanager
def serving(service: Service, limits: Limits) -> Iterator[tuple[str, int]]:
    """A real server on a free port, in a thread; it must end as it is told."""
    at = server.bound("127.0.0.1", 0)
    at.listen()
    address, stopping, tasks = at.getsockname()[:2], threading.Event(), tasks_of(limits)
    app = make_app(service, tasks, limits)
    thread = threading.Thread(
        target=server.serve, args=(app, at, limits, stopping, tasks.forget_old)
    )
    thread.start()
    try:
        yield address
    finally:
        stopping.set()
        thread.join(timeout=60)
        at.close()
    assert not thread.is_alive()
