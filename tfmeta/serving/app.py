"""The interface over HTTP, and the files of the page."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from flask import Flask, Response, request, send_from_directory
from werkzeug.exceptions import HTTPException

from tfmeta.serving import same_site
from tfmeta.serving.bodies import queries_of, read, support_of
from tfmeta.serving.limits import Limits, RefusedError, received
from tfmeta.serving.service import KINDS, Service
from tfmeta.serving.tasks import Task, Tasks

HERE = Path(__file__).parent
# Computed at once; TensorFlow shares each out among the cores. They are the same threads for all
# requests, for TensorFlow keeps what it has prepared for each size of a task for each thread.
_WORKERS = 2
_Answer = TypeVar("_Answer")


def make_app(
    service: Service,
    tasks: Tasks,
    limits: Limits,
    *,
    title: str = "A learner",
    host: str = "127.0.0.1",
) -> Flask:
    """Return the application; `openapi.json` beside this file describes it.

    Args:
        service: What adapts and predicts.
        tasks: Where what was learnt is kept.
        limits: What is refused.
        title: What the page calls the learner.
        host: Under which name it is asked, besides addresses and `localhost`.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limits.max_bytes
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    places = threading.BoundedSemaphore(limits.max_requests)
    workers = ThreadPoolExecutor(_WORKERS, "tfmeta-serve")

    def in_turn(action: Callable[[], _Answer]) -> _Answer:
        """Have something done by a worker, or send the request away where too many wait."""
        if not places.acquire(blocking=False):
            raise RefusedError(503, "Too many requests at once; try again in a second.")
        try:
            return workers.submit(action).result()
        finally:
            places.release()

    def content() -> IO[bytes]:
        """Return what a worker reads, so that the many threads of requests hold nothing large."""
        if request.mimetype != "application/json":
            kind = request.headers.get("Content-Type")
            raise RefusedError(415, f"`Content-Type` must be application/json.{received(kind)}")
        return request.stream

    def found(task: Any) -> Task:
        known = tasks.find(task) if isinstance(task, str) else None
        if known is None:
            raise RefusedError(
                404, "`task` must be an id that /adapt gave and that is still kept; adapt again."
            )
        return known

    def adapt() -> Any:
        sent = content()

        def learnt() -> Any:
            task = service.adapt(support_of(read(sent.read(), limits), service.images, limits))
            return {
                "task": tasks.add(task),
                "class_names": task.class_names,
                "shots": task.shots,
                "unknown": task.unknown and dataclasses.asdict(task.unknown),
                "seconds": tasks.seconds,
            }

        return in_turn(learnt)

    def predict() -> Any:
        sent = content()

        def answered() -> Any:
            task, query_x = queries_of(read(sent.read(), limits), service.images, limits)
            return service.predict(found(task), query_x)

        return in_turn(answered)

    def model(task: str) -> Any:
        kind = request.args.get("format", KINDS[0])
        if kind not in KINDS:
            raise RefusedError(422, f"`format` must be one of {', '.join(KINDS)}.{received(kind)}")
        zipped = in_turn(lambda: service.packed_model(found(task), kind))
        named = {"Content-Disposition": f'attachment; filename="adapted-{kind}.zip"'}
        return Response(zipped, mimetype="application/zip", headers=named)

    def forget(task: str) -> Any:
        if not tasks.remove(task):
            found(None)
        return "", 204

    def info() -> Any:
        return {
            "title": title,
            "size": service.images["size"],
            "invert": service.images.get("invert", False),
            "ways": service.ways,
            "transductive": service.learner.transductive,
            "unknown": service.fit_threshold is not None,
            "why_no_nearest": service.why_no_nearest,
            "formats": KINDS,
            "limits": dataclasses.asdict(limits),
        }

    def openapi() -> Any:
        return json.loads((HERE / "openapi.json").read_text(encoding="utf-8"))

    def page(name: str = "index.html") -> Any:
        return send_from_directory(HERE / "static", name)

    app.add_url_rule("/adapt", view_func=adapt, methods=["POST"])
    app.add_url_rule("/predict", view_func=predict, methods=["POST"])
    app.add_url_rule("/tasks/<task>", view_func=forget, methods=["DELETE"])
    app.add_url_rule("/tasks/<task>/model", view_func=model)
    app.add_url_rule("/info", view_func=info)
    app.add_url_rule("/openapi.json", view_func=openapi)
    app.add_url_rule("/", view_func=page)
    app.add_url_rule("/static/<name>", view_func=page)

    def check() -> None:
        headers = request.headers
        same_site.check(
            request.method,
            headers.get("Host"),
            headers.get("Origin"),
            headers.get("Sec-Fetch-Site"),
            host,
        )

    def with_headers(answer: Response) -> Response:
        answer.headers.update(same_site.HEADERS)
        # Pictures are nobody else's, and the page is that of the version that runs.
        answer.headers["Cache-Control"] = "no-cache" if request.endpoint == "page" else "no-store"
        return answer

    def refused(error: RefusedError) -> Any:
        later = {"Retry-After": "1"} if error.status == 503 else {}
        return {"error": error.words}, error.status, later

    def in_words(error: HTTPException) -> Any:
        if error.code == 413:
            return refused(
                RefusedError(413, f"A request must have at most {limits.max_bytes} bytes.")
            )
        return {"error": error.description}, error.code

    app.before_request(check)
    app.after_request(with_headers)
    app.register_error_handler(RefusedError, refused)
    app.register_error_handler(HTTPException, in_words)
    return app
