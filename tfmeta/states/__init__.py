"""The whole state of a training, in files that are whole or not there.

A state is all that decides how a training goes on: the weights of the learner (learned rates,
counted epochs, statistics of each inner step, the seeds of random layers), those of its optimizer,
what the callbacks have counted, in the middle of an epoch the sums of the metrics, and the number
of the meta-batch that comes next, which is all that a sampler needs. A training that goes on from a
state ends with the weights and the history of one that was never interrupted.

A file is a line with the number of its format and the SHA-256 of what follows, a line of JSON, and
the numbers. It is written beside its place, flushed to the disk and then renamed, so that a process
that is killed, or a disk that is full, leaves the older files as they are. A file is used only if
its sum is right.
"""

from tfmeta.states.save_state import SaveState, Stopped
from tfmeta.states.state import State, newest

__all__ = ["SaveState", "State", "Stopped", "newest"]
