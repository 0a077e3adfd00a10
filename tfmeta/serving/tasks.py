"""What was learnt of the last tasks, in memory alone, each under an id."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from tfmeta.threshold import Threshold
from tfmeta.types import Array, Tensor


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: what was shown, and what was learnt of it.

    Attributes:
        class_names: A name a class.
        support_x: `[n, ...]`, as the learner's model takes it.
        support_y: `[n]`, from 0 on.
        state: What the learner made of them.
        unknown: What tells which queries are of none of the classes, if anything does.
    """

    class_names: tuple[str, ...]
    support_x: Array
    support_y: Array
    state: dict[str, Tensor]
    unknown: Threshold | None = None

    @property
    def shots(self) -> list[int]:
        """How many examples there are of each class."""
        return [int((self.support_y == i).sum()) for i in range(len(self.class_names))]

    @property
    def nbytes(self) -> int:
        """What it takes of the memory."""
        learnt = sum(x.shape.num_elements() * x.dtype.size for x in self.state.values())
        return int(learnt) + self.support_x.nbytes + self.support_y.nbytes


class Tasks:
    """A bounded number of tasks, with a bounded number of bytes, for a bounded time.

    Whoever knows an id may use its task; it has 128 random bits.

    Args:
        capacity: The most tasks; then the one that nobody has used for longest goes.
        max_bytes: The most bytes of all.
        seconds: How long a task is kept that nobody uses.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        capacity: int,
        max_bytes: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity, self.max_bytes, self.seconds = capacity, max_bytes, seconds
        self._clock = clock
        # The one used last is the last, with the time of that.
        self._kept: OrderedDict[str, tuple[Task, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, task: Task) -> str:
        """Keep a task; return its id."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = task, self._clock()
            self._bytes += task.nbytes
            while len(self._kept) > self.capacity or self._bytes > self.max_bytes:
                self._remove_first()
        return name

    def find(self, name: str) -> Task | None:
        """Return a task and keep it for longer, or `None` where the id is unknown."""
        self.forget_old()
        with self._lock:
            if name not in self._kept:
                return None
            task, _ = self._kept.pop(name)
            self._kept[name] = task, self._clock()
            return task

    def remove(self, name: str) -> bool:
        """Forget a task; return whether there was one."""
        with self._lock:
            task, _ = self._kept.pop(name, (None, 0))
            self._bytes -= 0 if task is None else task.nbytes
            return task is not None

    def forget_old(self) -> None:
        """Forget what nobody has used for too long."""
        with self._lock:
            before = self._clock() - self.seconds
            while self._kept and next(iter(self._kept.values()))[1] < before:
                self._remove_first()

    def _remove_first(self) -> None:
        _, (task, _) = self._kept.popitem(last=False)
        self._bytes -= task.nbytes
