"""A learner over HTTP: examples in, an id out; queries and the id in, predictions out.

    python server.py MODEL [--port 8000]

MODEL is what `learner.export` wrote; this package is not needed here. Flask reads the requests and
waitress, without a dependency of its own, gives each a thread: TensorFlow computes with Python's
lock released, and what was loaded may be called from any thread.

    POST /adapt    {"support_x": [...], "support_y": [...]}   ->  {"task": id}
    POST /predict  {"task": id, "query_x": [...]}             ->  {"predictions": [...], ...}

What was learnt stays here and is known by an id: all weights of MAML would be megabytes of JSON
with each prediction. The store is bounded, so that memory does not grow: the task that nobody has
asked for the longest gives way. Its id is then unknown (404), as it is to another process and after
a restart; the client sends its examples again, to any process. An id cannot be guessed.

All else has a bound as well, `Bounds`: what is larger is refused (413), what comes while too much
is being done is sent away (503), and who sends or reads too slowly is cut off. After SIGTERM what
has come is answered, and nothing more is taken.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from flask import Flask, abort, request
from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from werkzeug.exceptions import HTTPException


def bound(default, words):
    return dataclasses.field(default=default, metadata={"help": words})


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much is taken, kept and done at once; an option of the command line each."""

    capacity: int = bound(256, "how many tasks are kept")
    max_kept_bytes: int = bound(2**28, "how many bytes they have together")
    max_bytes: int = bound(2**24, "the longest request")
    max_numbers: int = bound(2**20, "the most numbers, as of pixels, in a request")
    max_examples: int = bound(128, "the most examples, or queries, in a request")
    threads: int = bound(4, "how many requests are computed at once")
    max_waiting: int = bound(64, "how many requests may wait for that")
    max_connections: int = bound(128, "with more, the one that is idle longest is closed")
    timeout: int = bound(10, "seconds in which a request must be sent, and its answer read")
    grace: int = bound(30, "seconds after SIGTERM in which what has come is answered")


class Tasks:
    """What was learnt of the last tasks, each under an id."""

    def __init__(self, capacity, max_bytes):
        self.capacity, self.max_bytes = capacity, max_bytes
        self.states, self.bytes = OrderedDict(), 0
        self.lock = threading.Lock()

    def add(self, state):
        """Keep what was learnt; return its id."""
        task = secrets.token_urlsafe(16)
        with self.lock:
            self.states[task] = state
            self.bytes += size_of(state)
            while len(self.states) > self.capacity or self.bytes > self.max_bytes:
                self.bytes -= size_of(self.states.popitem(last=False)[1])
        return task

    def find(self, task):
        """Return what was learnt, or `None` where the id is unknown."""
        with self.lock:
            if task in self.states:
                self.states.move_to_end(task)
            return self.states.get(task)


def size_of(state):
    return sum(x.shape.num_elements() * x.dtype.size for x in state.values())


def make_app(model, bounds):
    """Return the service of a loaded learner."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = bounds.max_bytes
    tasks = Tasks(bounds.capacity, bounds.max_kept_bytes)
    adapting, predicting = model.signatures["adapt"], model.signatures["predict"]
    specs = {k: f.structured_input_signature[1] for k, f in model.signatures.items()}
    places = threading.BoundedSemaphore(bounds.threads + bounds.max_waiting)
    turns = threading.BoundedSemaphore(bounds.threads)

    @contextlib.contextmanager
    def in_turn():
        """Wait for a thread, or send the request away where too many do."""
        if not places.acquire(blocking=False):
            abort(503, "Too many requests are waiting; try again in a second.")
        try:
            with turns:
                yield
        finally:
            places.release()

    @app.post("/adapt")
    def adapt():
        with in_turn():
            body = fields(bounds, "support_x", "support_y")
            given = {k: tensor(k, x, specs["adapt"][k], bounds) for k, x in body.items()}
            return {"task": tasks.add(computed(adapting, given))}

    @app.post("/predict")
    def predict():
        with in_turn():
            body = fields(bounds, "query_x", "task")
            state = tasks.find(body["task"]) if isinstance(body["task"], str) else None
            if state is None:
                abort(
                    404,
                    "`task` must be an id that /adapt gave and that is still kept; adapt again.",
                )
            x = tensor("query_x", body["query_x"], specs["predict"]["query_x"], bounds)
            answer = {
                k: v.numpy() for k, v in computed(predicting, {"query_x": x, **state}).items()
            }
            if not np.isfinite(answer["predictions"]).all():
                abort(
                    400,
                    "The predictions are not finite: are the examples of the scale of training?",
                )
            answer = {k: v.tolist() for k, v in answer.items()}
            if "labels" in answer:
                answer["labels"] = [name.decode(errors="replace") for name in answer["labels"]]
            return answer

    @app.errorhandler(HTTPException)
    def in_words(error):
        return (
            {"error": error.description},
            error.code,
            {"Retry-After": 1} if error.code == 503 else {},
        )

    return app


def fields(bounds, *names):
    """Return the request's JSON object, which must have exactly these fields."""
    content = request.get_data(cache=False)
    # Before it is parsed, for a list takes many times as much memory as its two characters.
    if content.count(b",") + content.count(b"[") > 3 * bounds.max_numbers:
        abort(413, f"The request must have at most {bounds.max_numbers} numbers.")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        abort(400, f"The request must be JSON: {error}")
    if not isinstance(body, dict) or set(body) != set(names):
        given = sorted(body)[:8] if isinstance(body, dict) else type(body).__name__
        abort(400, f"The request must be an object of {', '.join(names)}. Received: {given}"[:400])
    return body


def tensor(name, value, spec, bounds):
    """Return nested lists as a tensor of the type that the signature says, and no other."""
    shape, numbers = [], [value]
    while numbers and isinstance(numbers[0], list):
        lengths = {len(x) if isinstance(x, list) else None for x in numbers}
        if len(lengths) > 1:
            abort(400, f"`{name}` must be nested lists of the same lengths.")
        shape.append(lengths.pop())
        numbers = list(itertools.chain.from_iterable(numbers))
    if shape and shape[0] > bounds.max_examples:
        abort(413, f"`{name}` must be at most {bounds.max_examples} examples. Received: {shape[0]}")
    if len(numbers) > bounds.max_numbers:
        abort(
            413, f"`{name}` must be at most {bounds.max_numbers} numbers. Received: {len(numbers)}"
        )
    words, dtype = f"`{name}` must be {spec.dtype.name} numbers. Received: ", spec.dtype
    strange = set(map(type, numbers)) - ({int} if dtype.is_integer else {int, float})
    if strange:
        abort(400, words + strange.pop().__name__)
    low, high = map(int if dtype.is_integer else float, (dtype.min, dtype.max))
    for number in numbers:
        if not low <= number <= high:  # nor is NaN
            abort(400, words + str(number)[:40])
    return tf.constant(np.array(numbers, dtype.as_numpy_dtype).reshape(shape))


def computed(function, given):
    """Return what a signature gives, or its checks' own words."""
    try:
        return function(**given)
    except tf.errors.InvalidArgumentError as error:
        words = re.search(r"assertion failed: \[(.*)\]", error.message)
        if words is None:
            raise
        abort(400, words[1].replace("] [", " "))


class Connection(HTTPChannel):
    """A connection in which pieces of a request, or of its answer, do not begin its time anew."""

    def __init__(self, server, *args, **kwargs):
        super().__init__(server, *args, **kwargs)
        others = [c for c in server.active_channels.values() if c is not self and not c.requests]
        if others and len(server.active_channels) > server.adj.connection_limit // 2:
            min(others, key=lambda c: c.last_activity).will_close = True

    def handle_read(self):
        half, since = self.request, self.last_activity
        super().handle_read()
        if half is not None and self.request is half:
            self.last_activity = since

    def handle_write(self):
        since = self.last_activity
        super().handle_write()
        if self.total_outbufs_len:
            self.last_activity = since


def serve(app, host, port, bounds):
    """Answer until SIGTERM or Ctrl-C, and then what has come by then."""
    sockets = {}
    # Or waitress says each time that a request has to wait for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server = create_server(
        app,
        map=sockets,
        host=host,
        port=port,
        # Those that wait have a thread each, and some are left to send others away.
        threads=bounds.threads + bounds.max_waiting + 4,
        # What is far too long is not even read; what is a little too long gets an answer in JSON.
        max_request_body_size=2 * bounds.max_bytes,
        max_request_header_size=2**14,
        inbuf_overflow=2**16,  # the rest of a request waits in a file
        outbuf_high_watermark=2**40,  # no thread waits for a client that does not read
        connection_limit=2 * bounds.max_connections,
        channel_timeout=bounds.timeout,
        cleanup_interval=1,
        asyncore_use_poll=True,
    )
    server.channel_class = Connection
    stopping = threading.Event()

    def stop(number, _):
        stopping.set()
        signal.signal(number, signal.SIG_DFL)  # whoever asks again does not want to wait
        server.pull_trigger()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    print(f"http://{host}:{server.effective_port}", flush=True)
    while not stopping.is_set():
        wasyncore.loop(timeout=1, use_poll=True, map=sockets, count=1)

    known = None
    while known != len(server.active_channels):  # who is connected already
        known = len(server.active_channels)
        server.handle_accept()
    wasyncore.dispatcher.close(server)  # who comes now is refused
    end = time.monotonic() + bounds.grace
    while server.active_channels and time.monotonic() < end:
        wasyncore.loop(timeout=0.1, use_poll=True, map=sockets, count=1)
        server.maintenance(time.time())
        for connection in server.active_channels.values():
            if not (connection.requests or connection.request or connection.total_outbufs_len):
                connection.will_close = True
    server.task_dispatcher.shutdown()


def load(folder):
    """Return an exported learner, all of whose files are as they were written.

    Raises:
        ValueError: If a file is damaged, missing or none of an exported learner's.
    """
    folder, name = Path(folder), "assets.extra/SHA256SUMS"
    if not (folder / name).is_file():
        raise ValueError(f"'{folder}' must be what `learner.export` wrote; it has no {name}")
    lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    files = {x.relative_to(folder).as_posix(): x for x in folder.rglob("*") if x.is_file()}
    del files[name]
    for name in sorted({*listed, *(x for x in files if not x.startswith("assets.extra/"))}):
        content = files[name].read_bytes() if name in files else b""
        if name not in files or hashlib.sha256(content).hexdigest() != listed.get(name):
            raise ValueError(
                f"'{folder / name}' is damaged: it is not as `learner.export` wrote it"
            )
    model = tf.saved_model.load(folder)
    if not {"adapt", "predict"} <= set(model.signatures):
        raise ValueError(f"'{folder}' must be an exported learner, and not an adapted model")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one")
    for field in dataclasses.fields(Bounds):
        option, words = (
            f"--{field.name.replace('_', '-')}",
            f"{field.metadata['help']} [%(default)s]",
        )
        parser.add_argument(option, type=int, default=field.default, help=words)
    arguments = vars(parser.parse_args())
    folder, host, port = (arguments.pop(name) for name in ("model", "host", "port"))
    try:
        model = load(folder)
    except ValueError as error:
        sys.exit(str(error))
    bounds = Bounds(**arguments)
    serve(make_app(model, bounds), host, port, bounds)
