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
"""

import argparse
import json
import logging
import os
import re
import secrets
import threading
from collections import OrderedDict

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from flask import Flask, abort, request
from waitress import create_server
from werkzeug.exceptions import HTTPException


class Tasks:
    """What was learnt of the last tasks, each under an id."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.states = OrderedDict()
        self.lock = threading.Lock()

    def add(self, state):
        """Keep what was learnt; return its id."""
        task = secrets.token_urlsafe(16)
        with self.lock:
            self.states[task] = state
            if len(self.states) > self.capacity:
                self.states.popitem(last=False)
        return task

    def find(self, task):
        """Return what was learnt, or `None` where the id is unknown."""
        with self.lock:
            if task in self.states:
                self.states.move_to_end(task)
            return self.states.get(task)


def make_app(model, capacity=256, max_bytes=2**24):
    """Return the service of a loaded learner.

    Args:
        model: What `tf.saved_model.load` gave.
        capacity: How many tasks are kept.
        max_bytes: The longest request.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = max_bytes
    tasks = Tasks(capacity)
    adapting, predicting = model.signatures["adapt"], model.signatures["predict"]
    specs = {k: f.structured_input_signature[1] for k, f in model.signatures.items()}

    @app.post("/adapt")
    def adapt():
        body = fields("support_x", "support_y")
        given = {name: tensor(name, x, specs["adapt"][name]) for name, x in body.items()}
        return {"task": tasks.add(computed(adapting, given))}

    @app.post("/predict")
    def predict():
        body = fields("query_x", "task")
        state = tasks.find(body["task"]) if isinstance(body["task"], str) else None
        if state is None:
            abort(404, "`task` must be an id that /adapt gave and that is still kept; adapt again.")
        x = tensor("query_x", body["query_x"], specs["predict"]["query_x"])
        answer = {k: v.numpy() for k, v in computed(predicting, {"query_x": x, **state}).items()}
        if not np.isfinite(answer["predictions"]).all():
            abort(400, "The predictions are not finite: are the examples of the scale of training?")
        if "labels" in answer:
            answer["labels"] = answer["labels"].astype(str)
        return {k: v.tolist() for k, v in answer.items()}

    @app.errorhandler(HTTPException)
    def in_words(error):
        return {"error": error.description}, error.code

    return app


def fields(*names):
    """Return the request's JSON object, which must have exactly these fields."""
    try:
        body = json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError) as error:
        abort(400, f"The request must be JSON: {error}")
    if not isinstance(body, dict) or set(body) != set(names):
        given = sorted(body) if isinstance(body, dict) else type(body).__name__
        abort(400, f"The request must be an object of {', '.join(names)}. Received: {given}")
    return body


def tensor(name, value, spec):
    """Return nested lists as a tensor of the type that the signature says, and no other."""
    try:
        array = np.asarray(value)
    except (ValueError, RecursionError):
        abort(400, f"`{name}` must be nested lists of the same lengths.")
    kinds = "iu" if spec.dtype.is_integer else "iuf"
    if array.size and array.dtype.kind not in kinds:
        abort(400, f"`{name}` must be {spec.dtype.name} numbers. Received: {array.dtype}")
    with np.errstate(over="ignore"):
        numbers = array.astype(spec.dtype.as_numpy_dtype)
    fit = (numbers == array) if spec.dtype.is_integer else np.isfinite(numbers)
    if not fit.all():
        worst = array[~fit].ravel()[0]
        abort(400, f"`{name}` must be {spec.dtype.name} numbers. Received: {worst}")
    return tf.constant(numbers)


def computed(function, given):
    """Return what a signature gives, or its checks' own words."""
    try:
        return function(**given)
    except tf.errors.InvalidArgumentError as error:
        words = re.search(r"assertion failed: \[(.*)\]", error.message)
        if words is None:
            raise
        abort(400, words[1].replace("] [", " "))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--capacity", type=int, default=256, help="how many tasks are kept")
    parser.add_argument("--max-bytes", type=int, default=2**24, help="the longest request")
    arguments = parser.parse_args()
    app = make_app(tf.saved_model.load(arguments.model), arguments.capacity, arguments.max_bytes)
    # Or waitress says each time that a request has to wait for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server = create_server(
        app,
        host=arguments.host,
        port=arguments.port,
        threads=arguments.threads,
        # What is far too long is not even read; what is a little too long gets an answer in JSON.
        max_request_body_size=2 * arguments.max_bytes,
    )
    print(f"http://{arguments.host}:{server.effective_port}", flush=True)
    server.run()
