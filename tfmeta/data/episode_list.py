"""Episodes that are written down: the same for everybody who scores on them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmeta.data.augmentation import Augmentation
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.episodes import EpisodeSampler
from tfmeta.data.gather import check_squares, integer
from tfmeta.data.gather_several import gather_of
from tfmeta.data.nested_stream import nested_stream
from tfmeta.data.normalization import Numbers
from tfmeta.data.several_inputs import number_of
from tfmeta.data.stream import stream
from tfmeta.files import replacing
from tfmeta.types import Array, Episodes

if TYPE_CHECKING:
    import tensorflow as tf

_KEYS = ("support", "query", "turns")


class EpisodeList:
    """Reads a fixed list of episodes from a file, in its order, and begins again after the last.

    The file has one episode a line, in JSON, as `write_episodes` writes it:

        {"support": [[3, 8], [41, 40]], "query": [[5], [44]], "turns": [0, 0]}

    There is a list of positions in `dataset.examples` for each class of the episode. `turns` are
    the counter-clockwise quarter turns of each class, 0 where there are none; it may be left out.
    In front of all comes a line with the number of episodes and a digest of them, which a list that
    is written by hand need not have.
    Episodes may differ in ways and shots; `batch` then gives masks, as `EpisodeSampler` does.

    Args:
        dataset: What the positions are of.
        path: The file.
        augmentation: Random changes of the images, or `None`; those of an episode depend on its
            place in the list, and come anew each time the list begins again.
        mean, std, num_threads: As for `EpisodeSampler`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has no episodes or is not as it was written, or a line is no episode
            of this dataset: it is named.

    Example:

    ```python
    tfmeta.data.write_episodes("test.jsonl", sampler, episodes=600)
    fixed = tfmeta.data.EpisodeList(dataset, "test.jsonl")
    tfmeta.evaluate(learner, fixed, episodes=len(fixed))
    ```
    """

    def __init__(
        self,
        dataset: ClassDataset,
        path: str | os.PathLike[str],
        *,
        augmentation: Augmentation | Mapping[str, Augmentation] | None = None,
        mean: Numbers | Mapping[str, Numbers] | None = None,
        std: Numbers | Mapping[str, Numbers] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.source = dataset
        self._gather = gather_of(dataset, augmentation, mean, std, num_threads)
        owner = np.full(number_of(dataset.examples), -1)
        for c, begin, end in zip(
            range(dataset.num_classes),
            dataset.class_offsets[:-1],
            dataset.class_offsets[1:],
            strict=True,
        ):
            owner[dataset.class_indices[begin:end]] = c
        episodes = []
        name = os.fspath(path)
        try:
            lines = Path(path).read_bytes().decode().split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"`path` must be a text in UTF-8. Received: {name!r}: {error}"
            ) from None
        first = _is_header(lines[0])
        if first:
            _check_whole(name, lines)
        if not lines[-1]:  # behind the last end of a line
            lines.pop()
        for number, line in enumerate(lines[first:], 1 + first):
            try:
                episodes.append(_episode(line, owner))
            except ValueError as error:
                raise ValueError(f"Line {number} of {name!r}: {error}") from error
        if not episodes:
            raise ValueError(f"`path` must hold episodes. Received: {name!r}, empty")
        self._support = _filled([support for support, _, _ in episodes])
        self._query = _filled([query for _, query, _ in episodes])
        turns = _filled([[[t] for t in turns] for _, _, turns in episodes])[..., 0]
        self._turns = np.maximum(turns, 0).astype(np.uint8)
        self._padded = bool((self._support < 0).any() or (self._query < 0).any())
        if self._turns.any():
            check_squares(dataset, "A list of episodes with turns")

    def __len__(self) -> int:
        return len(self._turns)

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns episodes `step * meta_batch_size` and on, as `EpisodeSampler.batch` does."""
        step = integer("step", step, 0, 2**63)
        tasks = integer("meta_batch_size", meta_batch_size, 1)
        rows = [(step * tasks + task) % len(self) for task in range(tasks)]
        return self._gather(
            self._support[rows],
            self._query[rows],
            self._turns[rows],
            seed=0,
            step=0,
            first_task=step * tasks,
            padded=self._padded,
        )

    def dataset(self, meta_batch_size: int = 1, start: int = 0) -> tf.data.Dataset:
        """Returns the endless `tf.data.Dataset` of the list, as `EpisodeSampler.dataset` does."""
        several = isinstance(self.source.examples, dict)
        return (nested_stream if several else stream)(self, meta_batch_size, start)


def write_episodes(
    path: str | os.PathLike[str], sampler: EpisodeSampler, episodes: int, start: int = 0
) -> None:
    """Writes down the episodes that `tfmeta.evaluate` would draw, for an `EpisodeList`.

    Args:
        path: The file to write; it is replaced as a whole, or not at all.
        sampler: Where the episodes are from: task 0 of its steps.
        episodes: How many.
        start: The first step.

    Raises:
        TypeError: `sampler` is no `EpisodeSampler`.
        ValueError: The sampler turns classes at random that are rotations of each other: the same
            class could come twice; or it draws examples without labels.
    """
    if not isinstance(sampler, EpisodeSampler):
        raise TypeError(f"`sampler` must be an EpisodeSampler. Received: {sampler!r}")
    if sampler.random_rotation and sampler.source.quarter_turns.any():
        raise ValueError(
            "`sampler` must not have `random_rotation` for a dataset with rotations, or a class "
            f"may come twice in an episode. Received: {sampler!r}"
        )
    if sampler.unlabelled:
        raise ValueError(
            "`sampler` must have `unlabelled=0`, for a list of episodes has no place for examples "
            f"without labels. Received: {sampler!r}"
        )
    start = integer("start", start, 0, 2**63)
    digest = hashlib.sha256()
    episodes = integer("episodes", episodes, 1)
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(_header(episodes, digest))  # of this length, when all is known
        for step in range(start, start + episodes):
            support, query, turns = (x[0] for x in sampler.draw(step))
            ways = int((query[:, 0] >= 0).sum())
            lists = [
                [[int(i) for i in way if i >= 0] for way in x[:ways]] for x in (support, query)
            ]
            line = dict(zip(_KEYS, [*lists, turns[:ways].tolist()], strict=True))
            content = json.dumps(line).encode() + b"\n"
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(_header(episodes, digest))


def _header(episodes: int, digest: Any) -> bytes:
    return json.dumps({"episodes": episodes, "sha256": digest.hexdigest()}).encode() + b"\n"


def _is_header(line: str) -> bool:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and not set(_KEYS) & set(content)


def _check_whole(name: str, lines: list[str]) -> None:
    """Raise unless the first line tells what follows."""
    follows = "\n".join(lines[1:]).encode()
    written = _header(len(lines) - 2, hashlib.sha256(follows)).decode()
    if lines[0] + "\n" != written:
        raise ValueError(
            "`path` must be as `write_episodes` has written it, or have no first line that says "
            f"otherwise. Received: {name!r}, which has changed: its first line is {lines[0]!r}, "
            f"where {written!r} tells what follows"
        )


def _episode(line: str, owner: Array) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Return support, query and turns of one line; `owner` is each example's class, or -1."""
    try:
        content = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"an episode must be in JSON. Received: {error}") from error
    if not isinstance(content, dict) or not set(_KEYS[:2]) <= set(content) <= set(_KEYS):
        received = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"an episode must have {', '.join(_KEYS)}. Received: {received}")
    support, query = content["support"], content["query"]
    if not (_are_lists(support) and _are_lists(query) and len(support) == len(query) > 0):
        raise ValueError(
            "`support` and `query` must have a list of positions for each class, none of them empty"
        )
    turns = content.get("turns", [0] * len(support))
    if not isinstance(turns, list) or len(turns) != len(support):
        raise ValueError(f"`turns` must have a number for each class. Received: {turns}")
    if any(type(t) is not int or not 0 <= t < 4 for t in turns):
        raise ValueError(f"`turns` must be 0, 1, 2 or 3. Received: {turns}")
    drawn = [[*s, *q] for s, q in zip(support, query, strict=True)]
    flat = [i for way in drawn for i in way]
    if min(flat) < 0 or max(flat) >= len(owner) or (owner[flat] < 0).any():
        raise ValueError(
            f"positions must be of examples of the dataset, 0 to {len(owner) - 1}. Received: "
            f"{next(i for i in flat if not 0 <= i < len(owner) or owner[i] < 0)}"
        )
    classes = [{int(owner[i]) for i in way} for way in drawn]
    mixed = next((way for way, of in enumerate(classes) if len(of) > 1), None)
    if mixed is not None:
        raise ValueError(f"all examples of a class must be of one. Received: several in {mixed}")
    shown = {(c, t) for (c,), t in zip(classes, turns, strict=True)}
    if len(shown) < len(drawn) or any(len(set(way)) < len(way) for way in drawn):
        raise ValueError("no class and no example of a class may come twice")
    return support, query, turns


def _are_lists(ways: Any) -> bool:
    return isinstance(ways, list) and all(
        isinstance(way, list) and way and all(type(i) is int for i in way) for way in ways
    )


def _filled(ways: list[list[list[int]]]) -> Array:
    """Return `[episodes, ways, examples]`, -1 where there is none."""
    most = max(len(episode) for episode in ways)
    longest = max(len(way) for episode in ways for way in episode)
    filled = np.full([len(ways), most, longest], -1)
    for row, episode in zip(filled, ways, strict=True):
        for place, way in zip(row, episode, strict=False):
            place[: len(way)] = way
    return filled
