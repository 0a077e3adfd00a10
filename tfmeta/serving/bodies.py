"""The JSON of requests: what it must be is checked before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfmeta.bounded_json import parsed
from tfmeta.serving.limits import MAX_NAME, MAX_NUMBERS, Limits, RefusedError, received
from tfmeta.serving.pictures import decoded
from tfmeta.types import Array

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Support:
    """What a task is made of: names of classes, and labelled examples."""

    class_names: tuple[str, ...]
    support_x: Array
    support_y: Array


def read(content: bytes, limits: Limits) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises:
        RefusedError: If it is something else (400), or has too many numbers (413).
    """
    # Before it is parsed, for a list takes many times as much memory as its two characters.
    if content.count(b",") + content.count(b"[") + content.count(b"{") > 3 * MAX_NUMBERS:
        raise RefusedError(413, f"The request must have at most {MAX_NUMBERS} numbers.")
    try:
        body = parsed(content, longest=limits.max_bytes)
    except ValueError as error:
        raise RefusedError(400, f"The request must be JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusedError(400, f"The request must be an object of JSON.{received(body)}")
    return body


def support_of(body: dict[str, Any], images: dict[str, Any], limits: Limits) -> Support:
    """Return the examples that `/adapt` was given, as images or as numbers.

    Args:
        body: `classes`, of which each has a `name` and `images`; or `support_x`, `support_y` and,
            if it likes, `class_names`.
        images: How image files become what the learner's model takes.
        limits: How many there may be.

    Raises:
        RefusedError: If they are anything else.
    """
    if "support_x" not in body:
        _must_have(body, "classes")
        return _of_classes(body["classes"], images, limits)
    _must_have(body, "support_x", "support_y", optional="class_names")
    x = _numbers("support_x", body["support_x"], limits)
    y = _numbers("support_y", body["support_y"], limits)
    if y.ndim != 1 or len(y) == 0 or x.shape[:1] != y.shape or (y != np.floor(y)).any():
        raise RefusedError(
            422,
            "`support_y` must be a class number for each of `support_x`, at least one. Received: "
            f"shapes {list(x.shape)} and {list(y.shape)}",
        )
    if y.min() < 0 or y.max() >= limits.max_classes:
        raise RefusedError(
            413 if y.min() >= 0 else 422,
            f"`support_y` must be class numbers from 0 to {limits.max_classes - 1}. Received: "
            f"from {y.min():.0f} to {y.max():.0f}",
        )
    numbers = [str(i) for i in range(int(y.max()) + 1)]
    names = _names(body.get("class_names", numbers), limits)
    if len(names) != len(numbers) or len(np.unique(y)) != len(numbers):
        raise RefusedError(
            422,
            "Each of the classes must have a name and an example. Received: "
            f"{len(names)} names, and examples of {len(np.unique(y))} of {len(numbers)} classes",
        )
    return Support(names, x, y.astype(np.int64))


def queries_of(body: dict[str, Any], images: dict[str, Any], limits: Limits) -> tuple[Any, Array]:
    """Return the id, whatever that is, and the examples that `/predict` was given.

    Args:
        body: `task`, and `images` or `query_x`.
        images: As for `support_of`.
        limits: How many there may be.

    Raises:
        RefusedError: If they are anything else.
    """
    if "query_x" not in body:
        _must_have(body, "task", "images")
        files = _listed("images", body["images"], limits.max_images)
        return body["task"], decoded(files, images, limits)
    _must_have(body, "task", "query_x")
    return body["task"], _numbers("query_x", body["query_x"], limits)


def _of_classes(classes: Any, images: dict[str, Any], limits: Limits) -> Support:
    parts = _listed("classes", classes, limits.max_classes)
    for part in parts:
        if not isinstance(part, dict) or set(part) != {"name", "images"}:
            raise RefusedError(
                422, f"Each of `classes` must be an object of name and images.{received(part)}"
            )
    names = _names([part["name"] for part in parts], limits)
    files = [
        _listed(f"images of {name!r}", part["images"], limits.max_images)
        for name, part in zip(names, parts, strict=True)
    ]
    if (together := sum(map(len, files))) > limits.max_images:
        raise RefusedError(
            413,
            f"All classes together must have at most {limits.max_images} images. "
            f"Received: {together}",
        )
    x = [
        decoded(of, images, limits, f" of {name!r}") for name, of in zip(names, files, strict=True)
    ]
    return Support(names, np.concatenate(x), np.repeat(np.arange(len(x)), [*map(len, files)]))


def _must_have(body: dict[str, Any], *names: str, optional: str | None = None) -> None:
    if set(body) - {optional} != set(names):
        raise RefusedError(
            400,
            f"The request must be an object of {', '.join(names)}.{received(sorted(body)[:8])}",
        )


def _listed(name: str, value: Any, most: int) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise RefusedError(422, f"`{name}` must be a list of at least one.{received(value)}")
    if len(value) > most:
        raise RefusedError(413, f"`{name}` must be at most {most}. Received: {len(value)}")
    return value


def _names(value: Any, limits: Limits) -> tuple[str, ...]:
    """Return names of classes: texts that differ, none of them empty or endless."""
    names = _listed("names of classes", value, limits.max_classes)
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise RefusedError(
                422,
                f"The name of a class must be a text of 1 to {MAX_NAME} characters."
                f"{received(name)}",
            )
        if any(0xD800 <= ord(sign) < 0xE000 or ord(sign) < 32 for sign in name):
            raise RefusedError(
                422, f"The name of a class must be text that can be printed.{received(name)}"
            )
    if twice := [name for name in names if names.count(name) > 1]:
        raise RefusedError(422, f"The names of classes must differ.{received(twice[0])} twice")
    return tuple(names)


def _numbers(name: str, value: Any, limits: Limits) -> Array:
    """Return nested lists of finite numbers as float32."""
    _listed(name, value, limits.max_images)
    # Of texts NumPy would give each as much room as the longest.
    for number in _leaves(value):
        if type(number) not in (int, float):
            raise RefusedError(422, f"`{name}` must be numbers.{received(number)}")
        # Nor is NaN.
        if not abs(number) <= _LARGEST:
            raise RefusedError(
                422, f"`{name}` must be finite numbers that float32 has.{received(number)}"
            )
    try:
        return np.array(value, np.float32)
    except ValueError:
        raise RefusedError(422, f"`{name}` must be nested lists of the same lengths.") from None


def _leaves(value: Any) -> Iterator[Any]:
    """Return what is in nested lists; how deep they are was looked at when they were read."""
    if not isinstance(value, list):
        yield value
        return
    for part in value:
        yield from _leaves(part)
