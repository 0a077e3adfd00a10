"""Several devices and workers learn what one process would; workers that are lost or differ."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.distributed import sampler, trained
from tests.test_cli import write_images
from tfmeta import workers
from tfmeta.cli.settings import settings_from
from tfmeta.distribution import (
    digest,
    shared_out,
    strategy_of_environment,
    workers_of,
)
from tfmeta.training import _samples, episodes, evaluation_sampler
from tfmeta.workers import free_ports

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from tfmeta.cli import main; main()"]
# In seconds; the promise of docs/distributed.md.
TO_STOP = 60


@contextlib.contextmanager
def running(*commands: list[str], log: Path, workers: bool = False) -> Iterator[list[Any]]:
    """Run commands at once, as workers of one cluster if so asked; none is left at the end."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(commands))]
    processes = []
    try:
        for i, command in enumerate(commands):
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
            if workers:
                task = {"type": "worker", "index": i}
                config = {"cluster": {"worker": addresses}, "task": task}
                environment["TF_CONFIG"] = json.dumps(config)
            with open(f"{log}.{i}", "wb") as file:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            for child in children(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()


def children(process: Any) -> list[int]:
    """Return the processes that a process has started."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        return [int(number) for number in file.read_text().split()]
    return []


def wait_for(condition: Callable[[], Any], process: Any, log: Path, seconds: float = 120) -> None:
    """Wait until something is so, while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < end, log.read_text(errors="replace")
        time.sleep(0.05)


def ended(processes: list[Any], log: Path, seconds: float = 240) -> list[str]:
    """Wait until all have ended well, and return what they wrote."""
    end = time.monotonic() + seconds
    codes = [process.wait(max(end - time.monotonic(), 0)) for process in processes]
    texts = [Path(f"{log}.{i}").read_text(errors="replace") for i in range(len(processes))]
    assert codes == [0] * len(codes), texts
    return texts


_ALONE: dict[str, Any] = {}


def alone(name: str) -> Any:
    """Return what one process learns."""
    if name not in _ALONE:
        _ALONE[name] = trained(name)
    return _ALONE[name]


def assert_same(done: Any, name: str) -> None:
    """Check weights, history, predictions and episodes against those of one process."""
    expected = alone(name)
    for key, values in expected["history"].items():
        found = done["history"][key]
        if isinstance(values, dict):
            values, found = list(values.values()), list(found.values())
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")
    pairs = zip(expected["weights"], done["weights"], strict=True)
    for before, now in pairs:
        weight = np.asarray(expected["weights"][before])
        atol = 1e-5 * max(np.abs(weight).max(), 1e-3)
        np.testing.assert_allclose(
            done["weights"][now], weight, rtol=0, atol=atol, err_msg=f"{name} {before}"
        )
    np.testing.assert_allclose(done["predictions"], expected["predictions"], rtol=1e-3, atol=1e-3)
    assert done["episodes"] == expected["episodes"]


def learn(kind: str, count: int, names: str, folder: Path) -> list[Any]:
    """Train in other processes, and return what came of each."""
    outputs = [folder / f"{i}.json" for i in range(count)]
    commands = [
        [sys.executable, "-m", "tests.distributed", str(output), kind, names, "25"]
        for output in outputs
    ]
    log = folder / "log"
    with running(*commands, log=log, workers=kind == "workers") as processes:
        ended(processes, log)
    found = [json.loads(output.read_text()) for output in outputs]
    for done in found:
        spoilt = done["not_finite"]
        assert "`loss` must be finite. Received: loss=nan in epoch 2. The" in spoilt["said"]
        assert spoilt["others"] == 0
        assert spoilt["copies"] > 10
    return found


@pytest.mark.slow
def test_two_devices(tmp_path: Path) -> None:
    names = "prototypical,reptile"
    (done,) = learn("devices", 1, names, tmp_path)
    for name in names.split(","):
        assert_same(done[name], name)
    assert "multiple of the number of replicas" in done["refusals"]["fit"]
    assert "meta_batch_size=3" in done["refusals"]["fit"]
    assert "one replica" in done["refusals"]["train_on_batch"]
    assert "`jit_compile` must be False" in done["refusals"]["jit_compile"]


def test_two_workers(tmp_path: Path) -> None:
    names = "maml"
    for i, done in enumerate(learn("workers", 2, names, tmp_path)):
        message = f"All workers must have the same episodes. Received, in worker {i}, the digests "
        assert done["refusals"]["episodes"].startswith(message)
        for name in names.split(","):
            assert_same(done[name], name)
        # When this fails, Keras can do without `Replicated`'s functions (its issue 20585).
        assert done["keras"], "Keras's own fit works with several workers"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("devices", 1), ("workers", 2), ("workers", 4)])
def test_every_learner(kind: str, count: int, tmp_path: Path) -> None:
    names = "maml,maml_plus_plus,prototypical,simple_shot,reptile,sum"
    for done in learn(kind, count, names, tmp_path):
        for name in names.split(","):
            assert_same(done[name], name)


def test_tasks_are_shared_out() -> None:
    data = sampler(0).dataset(8)
    assert shared_out(data, tf.distribute.get_strategy()) is data
    assert shared_out([1], SimpleNamespace(num_replicas_in_sync=2)) == [1]
    parts = []
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 4)
        strategy = SimpleNamespace(
            num_replicas_in_sync=4,
            distribute_datasets_from_function=lambda f, context=context: f(context),
        )
        parts.append(list(shared_out(data, strategy).take(6).as_numpy_iterator()))
    for step in range(3):
        whole = sampler(0).batch(step, 8)
        # Two replicas a worker: step by step, worker by worker, replica by replica.
        got = [part[step * 2 + replica] for part in parts for replica in range(2)]
        for name, values in whole[0].items():
            np.testing.assert_array_equal(np.concatenate([x[name] for x, _ in got]), values)
        np.testing.assert_array_equal(np.concatenate([y for _, y in got]), whole[1])
        # And so would samplers' shards have drawn them.
        shard = sampler(0).shard(1, 4).batch(step, 2)
        np.testing.assert_array_equal(got[1][1], shard[1])


@pytest.mark.parametrize("tasks", [3, 6])
def test_tasks_that_cannot_be_shared_out(tasks: int) -> None:
    strategy = SimpleNamespace(num_replicas_in_sync=4)
    message = f"multiple of the number of replicas .* 4, .* meta_batch_size={tasks}"
    with pytest.raises(ValueError, match=message):
        shared_out(sampler(0).dataset(tasks), strategy)


def test_validation_that_cannot_be_shared_out() -> None:
    settings = settings_from(
        data="glyphs",
        data_dir=None,
        folder=None,
        preset=None,
        image_size=None,
        grayscale=False,
        invert=False,
        skip_unreadable=False,
        network="conv4",
        algorithm="maml",
        **dict.fromkeys(("ways", "meta_batch_size", "steps")),
        **dict.fromkeys(("shots", "queries", "epochs", "filters", "inner_steps"), 1),
        **dict.fromkeys(("learning_rate", "inner_learning_rate"), 0.1),
        **dict.fromkeys(("learning_rate_halving", "evaluation_steps")),
        **{"batch_norm": "transductive", "downsample": "pool", "distance": None},
        **{"freeze": None, "given": (), "min_per_class": 1},
        validation_episodes=6,
        seed=0,
    )
    parts = (sampler(0).source,) * 3
    message = "`validation_episodes` must be a multiple of .* 4. Received: validation_episodes=6"
    with pytest.raises(ValueError, match=message):
        episodes(settings, parts, replicas=4)
    _, validation = episodes(settings, parts, replicas=3)
    assert validation is not None
    assert int(validation.cardinality()) == 2
    inputs, _ = next(iter(validation.skip(1)))
    assert inputs["support_x"].shape[0] == 3
    expected, _ = evaluation_sampler(settings, parts[1]).batch(4, 1)
    np.testing.assert_array_equal(inputs["support_x"][1], expected["support_x"][0])


def test_digests() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [20, 4, 4, 1], np.uint8)
    labels = np.arange(20) // 5

    def of(images: Any, labels: Any) -> bytes:
        return digest(*_samples(tfmeta.data.ClassDataset(images, labels)))

    other = images.copy()
    other[7, 0, 0] += 1
    assert of(images, labels) == of(images.copy(), labels)
    assert len({of(images, labels), of(other, labels), of(images, labels[::-1].copy())}) == 3
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest(np.zeros(3)) != digest(np.zeros([3, 1])) != digest(np.zeros(3, np.float32))


def test_one_process_has_no_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    strategy = strategy_of_environment()
    assert strategy.num_replicas_in_sync == 1
    assert workers_of(strategy) == (0, 1)


def test_workers_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in {
        "JOB_ID": "7",
        "PROCID": "2",
        "STEP_NUM_TASKS": "3",
        "STEP_NODELIST": "node[1-2]",
        "STEP_TASKS_PER_NODE": "2,1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given: list[Any] = []
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", given.append)
    strategy_of_environment()
    spec = given[0].cluster_spec().as_dict()
    assert spec == {"worker": ["node1:12007", "node1:12008", "node2:12007"]}
    assert (given[0].task_type, given[0].task_id) == ("worker", 2)


# --- The command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos", 10)


def training_of(photos: Path, run: Path, *more: str) -> list[str]:
    """Return the command that trains a Prototypical Network for two epochs of 100 steps."""
    images = ["--image-size", "12", "--downsample", "stride", "--filters", "4", "--ways", "2"]
    steps = ["--steps", "100", "--epochs", "2", "--save-every", "20", "--meta-batch-size", "2"]
    episodes = ["--queries", "2", "--validation-episodes", "4"]
    return [*COMMAND, "train", str(photos), "-o", str(run), *images, *steps, *episodes, *more]


def states(run: Path) -> list[str]:
    """Return the names of a run's states."""
    return sorted(file.name for file in (run / "states").glob("state-*"))


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two workers that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = training_of(photos, folder / "run", "--workers", "2")
    with running(command, log=folder / "log") as processes:
        ended(processes, folder / "log")
    return folder / "run"


def finish(command: list[str], run: Path, undisturbed: Path, log: Path) -> None:
    """Resume a run, which must end as the other did."""
    assert states(run)[-1] < "state-000000000200"
    with running([*command, "--resume"], log=log) as processes:
        ended(processes, log)
    expected, found = (keras.models.load_model(x / "model.keras") for x in (undisturbed, run))
    for before, now in zip(expected.variables, found.variables, strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-7, err_msg=before.path)
    assert (run / "history.csv").read_text() == (undisturbed / "history.csv").read_text()
    assert (run / "worker_1.log").is_file()


def lose(worker: int, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Kill one of two workers in the middle, and resume the run."""
    run, log, shown = tmp_path / "run", tmp_path / "log", tmp_path / "log.0"
    command = training_of(photos, run, "--workers", "2")
    with running(command, log=log) as (parent,):
        wait_for(lambda: states(run), parent, shown)
        before = time.monotonic()
        os.kill(children(parent)[worker], signal.SIGKILL)
        assert parent.wait(TO_STOP) == 128 + signal.SIGKILL
        assert time.monotonic() - before < TO_STOP
    text = shown.read_text(errors="replace")
    assert f"Worker {worker} has ended with status 137: see" in text
    other = (run / f"worker_{1 - worker}.log").read_text(errors="replace")
    assert "Another of the 2 workers has ended or cannot be reached" in other
    finish(command, run, undisturbed, log)


@pytest.mark.slow
def test_lost_worker(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    lose(1, photos, undisturbed, tmp_path)


@pytest.mark.slow
def test_lost_first_worker(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    lose(0, photos, undisturbed, tmp_path)


@pytest.mark.slow
def test_signal_to_workers(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    run, log, shown = tmp_path / "run", tmp_path / "log", tmp_path / "log.0"
    command = training_of(photos, run, "--workers", "2")
    with running(command, log=log) as (parent,):
        wait_for(lambda: states(run), parent, shown)
        started = children(parent)
        assert len(started) == 2
        parent.send_signal(signal.SIGINT)
        assert parent.wait(TO_STOP) == 130, shown.read_text(errors="replace")
        assert not any(Path(f"/proc/{worker}").exists() for worker in started)
    assert "goes on from there" in shown.read_text(errors="replace")
    finish(command, run, undisturbed, log)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("print('done', i)", 0),
        ("sys.exit(3 if i else 0)", 3),
        ("i or os.kill(os.getpid(), 9); time.sleep(60)", 137),
        ("i or os.kill(os.getppid(), 15); time.sleep(60)", 143),
    ],
)
def test_start_workers(
    program: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = [
        "import json, os, sys, time",
        "i = json.loads(os.environ['TF_CONFIG'])['task']['index']",
        "print(os.getpid(), flush=True)",
        program,
    ]
    monkeypatch.setattr(workers, "_COMMAND", [sys.executable, "-c", "\n".join(lines)])
    monkeypatch.setattr(workers, "GRACE", 5.0)  # a busy machine takes long to start one
    assert workers.start_workers(2, tmp_path / "run") == status
    logs = [(tmp_path / "run" / f"worker_{i}.log").read_text().split() for i in range(2)]
    if not status:
        assert [log[1:] for log in logs] == [["done", "0"], ["done", "1"]]
        assert "done 0" in capfd.readouterr().out
    for log in logs:
        assert not log or not Path(f"/proc/{log[0]}").exists()


@pytest.mark.parametrize("what", ["settings", pytest.param("data", marks=pytest.mark.slow)])
def test_workers_that_differ(what: str, photos: Path, tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    commands = [training_of(photos, run), training_of(photos, run, "--seed", "1")]
    if what == "data":
        other = write_images(tmp_path / "photos", 10, images=6)
        commands[1] = training_of(other, run)
    with running(*commands, log=log, workers=True) as processes:
        codes = [process.wait(120) for process in processes]
    for i, code in enumerate(codes):
        text = Path(f"{log}.{i}").read_text(errors="replace")
        assert code == 1, text
        assert f"All workers must have the same {what}. Received, in worker {i}, the" in text
    assert not (run / "settings.json").exists()
