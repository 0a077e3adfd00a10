"""Learners on several devices and workers: what Keras's `fit` lacks under `tf.distribute`.

Everything that is exchanged is exchanged by TensorFlow: `tf.distribute.MirroredStrategy` between
the devices of a process, `tf.distribute.MultiWorkerMirroredStrategy` between processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.foreign.of_tensorflow import give_cardinality, worker_of
from tfmeta.types import Nest, Tensor

# What TensorFlow reports, on the other workers, of one that has ended.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


def strategy_of_environment() -> Any:
    """Return the strategy of this process, which must not have used TensorFlow before.

    That is a `tf.distribute.MultiWorkerMirroredStrategy` for a process that `TF_CONFIG` or Slurm's
    `srun` made one of several workers, and TensorFlow's default, of one replica, for any other.
    """
    resolvers = tf.distribute.cluster_resolver
    if "TF_CONFIG" in os.environ:
        resolver = resolvers.TFConfigClusterResolver()
        workers = sum(map(len, resolver.cluster_spec().as_dict().values()))
    else:
        workers = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
        if workers > 1:
            resolver = _of_slurm()
    if workers == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def _of_slurm() -> Any:
    """Return the resolver of Slurm's variables."""
    resolvers = tf.distribute.cluster_resolver
    # Another port for each job, for two may share a node.
    port = 12_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000
    if tf.config.list_physical_devices("GPU"):
        return resolvers.SlurmClusterResolver(port_base=port)
    # TensorFlow's deals GPUs out, and fails where there are none to deal.
    dealt = resolvers.SlurmClusterResolver(
        port_base=port, gpus_per_node=2**16, gpus_per_task=1, auto_set_gpu=False
    )
    spec = dealt.cluster_spec()
    return resolvers.SimpleClusterResolver(
        spec, task_type=dealt.task_type, task_id=dealt.task_id, rpc_layer="grpc"
    )


def workers_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Return which worker this process is, and how many there are."""
    return worker_of(strategy)


def local(strategy: tf.distribute.Strategy, values: Nest) -> Any:
    """Return what the first replica of this process has of each of a nest of values."""
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], values)


def of_workers(strategy: tf.distribute.Strategy, values: Tensor) -> Any:
    """Return what each of the workers has, `[workers, n]`; all must ask for it.

    Args:
        strategy: A strategy.
        values: int32 `[n]`, what this one has.
    """
    _, workers = workers_of(strategy)
    if workers == 1:
        return np.asarray(values)[None]
    # Made once, for TensorFlow counts its exchanges.
    if "tfmeta_gather" not in vars(strategy):
        replicas = strategy.num_replicas_in_sync // workers

        @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
        def gathered(mine: Tensor) -> Any:
            def gather(mine: Tensor) -> Any:
                # On this replica's device, which the argument is not.
                mine = tf.identity(mine)
                return tf.distribute.get_replica_context().all_gather(mine, axis=0)

            return local(strategy, strategy.run(gather, args=(mine,)))[::replicas]

        strategy.tfmeta_gather = gathered
    try:
        return strategy.tfmeta_gather(tf.constant(values, tf.int32)[None]).numpy()
    except LOST as error:
        raise lost(strategy, error) from error


def most_of_workers(strategy: tf.distribute.Strategy, value: int) -> int:
    """Return the largest of the workers' numbers; all must ask for it."""
    if workers_of(strategy)[1] == 1:
        return value
    return int(of_workers(strategy, np.array([value])).max())


def lost(strategy: tf.distribute.Strategy, error: Any) -> Exception:
    """Return what to raise where TensorFlow's exchange has failed; raise what is no exchange's."""
    worker, workers = workers_of(strategy)
    if workers == 1:
        raise error
    return ConnectionError(
        f"Another of the {workers} workers has ended or cannot be reached, and so worker {worker} "
        "stops. Start all of them again: a training that saves its states goes on from the last."
    )


def digest(*parts: Any) -> bytes:
    """Return the SHA-256 of arrays, and of what JSON can hold."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode())
            part = str(part.tolist()) if part.dtype == object else np.ascontiguousarray(part).data
        sha.update(part if isinstance(part, memoryview) else json.dumps(part, default=str).encode())
    return sha.digest()


def check_alike(strategy: tf.distribute.Strategy, digests: Mapping[str, bytes]) -> None:
    """Raise on every worker, unless all of them have the same.

    Args:
        strategy: A strategy.
        digests: What they must have the same of, and the `digest` of what this one has.

    Raises:
        ValueError: If a worker has another digest than this one.
    """
    worker, workers = workers_of(strategy)
    if workers == 1:
        return
    mine = np.frombuffer(b"".join(digests.values()), np.uint8)
    rows = of_workers(strategy, mine.astype(np.int32)).reshape(workers, len(digests), -1)
    for i, what in enumerate(digests):
        if (rows[:, i] != rows[0, i]).any():
            # None may end before all have read what it sent.
            with contextlib.suppress(ConnectionError):
                of_workers(strategy, mine.astype(np.int32))
            each = [bytes(row.astype(np.uint8)).hex()[:12] for row in rows[:, i]]
            found = ", ".join(f"worker {w}: {x}" for w, x in enumerate(each))
            raise ValueError(
                f"All workers must have the same {what}. Received, in worker {worker}, the "
                f"digests {found}"
            )


def shared_out(data: Any, strategy: tf.distribute.Strategy) -> Any:
    """Return a data set of meta-batches with the tasks of each shared out among the replicas.

    Replica r of n has the tasks `r·T/n` and on of each meta-batch of T tasks. Each worker draws
    whole meta-batches and keeps its part; one that is to draw its part only says so itself, by
    `strategy.distribute_datasets_from_function` and the sampler's `shard`.

    Args:
        data: A `tf.data.Dataset` of meta-batches; anything else is returned as it is.
        strategy: A strategy.

    Raises:
        ValueError: If the tasks of a meta-batch cannot be shared out evenly.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1 or not isinstance(data, tf.data.Dataset):
        return data
    sizes = {spec.shape[0] for spec in tf.nest.flatten(data.element_spec)}
    tasks = sizes.pop()
    if sizes or not tasks or tasks % replicas:
        raise ValueError(
            "`meta_batch_size` must be a multiple of the number of replicas (devices of all "
            f"workers), {replicas}, for its tasks to be shared out. Received: a data set with "
            f"meta_batch_size={tasks if not sizes else sizes | {tasks}}"
        )
    each = tasks // replicas

    def parts_of(context: tf.distribute.InputContext) -> tf.data.Dataset:
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here * each

        def part(*batch: Any) -> Any:
            return tf.nest.map_structure(
                lambda x: tf.reshape(x[first : first + here * each], [here, each, *x.shape[1:]]),
                batch if len(batch) > 1 else batch[0],
            )

        return data.map(part).unbatch().prefetch(here)

    shared = strategy.distribute_datasets_from_function(parts_of)
    # In meta-batches, as Keras counts, and not in the parts of one.
    give_cardinality(shared, data.cardinality().numpy())
    return shared


def summed(values: list[Any]) -> list[Any]:
    """Return the sums over all replicas of what each of them has."""
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, values))


def replicas_here() -> int:
    """Return how many replicas compute what is computed here: by how much Keras scales losses."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica_here() -> Any:
    """Return which of the replicas computes what is computed here."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group
