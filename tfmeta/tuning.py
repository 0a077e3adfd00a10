"""Search for the arguments that give the best validation accuracy, with Optuna.

`search` is for any function that trains and returns a score; `tune` trains as `tfmeta train` does.
Each trial is in an SQLite file as soon as it is finished. What trial n draws is a function of the
seed and of the trials finished before, so a search that was killed and resumed is the search that
was not.

References:
    - Bergstra, Bardenet, Bengio, Kégl. *Algorithms for Hyper-Parameter Optimization.* NeurIPS 2011.
    - Akiba et al. *Optuna: A Next-generation Hyperparameter Optimization Framework.* KDD 2019.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import keras

from tfmeta import training
from tfmeta.checks import check_count, did_you_mean
from tfmeta.choices import PRUNERS, SAMPLERS
from tfmeta.data import ClassDataset
from tfmeta.files import replacing
from tfmeta.inside import check_inside
from tfmeta.locks import one_writer
from tfmeta.runs import Run, Settings, check_same, check_values
from tfmeta.samplers import check_sampler, optuna_module, sampler_for
from tfmeta.search_space import (
    EXAMPLE,
    check_space,
    distributions_of,
    largest,
    searchable,
    values_of,
    with_values,
)

Objective: TypeAlias = Callable[[dict[str, Any], list[keras.callbacks.Callback]], float]

# Settings that older searches have not, and what they were then.
_CAME_LATER: dict[str, Any] = {
    "arguments": {},
    "network_sha256": None,
    "freeze": False,
    "batch_norm_momentum": None,
    "min_per_class": 1,
}
# What SQLite calls the files beside a database, and how the journal of several ends.
_ENDS = ("-journal", "-wal", "-shm")
_OF_SEVERAL = bytes.fromhex("d9d505f920a163d7")
# How SQLite says what is wrong with a disk, and not with what is in the file.
_OF_DISK = (
    "database or disk is full",
    "disk I/O error",
    "attempt to write a readonly database",
    "unable to open database file",
    "database is locked",
)


def search(
    objective: Objective,
    space: Mapping[str, str],
    path: str | os.PathLike[str],
    trials: int = 25,
    *,
    sampler: str = "tpe",
    pruner: str = "median",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> Any:
    """Look for the values that an objective is largest for; go on where `path` has a search.

    Args:
        objective: Called with a value for each name of `space` and a list of callbacks, returns the
            score. Its `fit` takes the callbacks: they end a trial whose `val_accuracy` is worse
            than the others' was after that epoch, or whose loss is not finite.
        space: For each name `"low:high"`, `"low:high:log"` or choices `"a,b,c"`. Both ends of a
            range belong to it; it has integers where both are written as such.
        path: The SQLite file of the trials, which is this process's alone until the end.
        trials: How many there shall be in the end, those that the file has already included.
        sampler: `"tpe"` (a tree of Parzen estimators), `"gp"` (a Gaussian process, for few trials
            that take long; needs torch) and `"cmaes"` (an evolution strategy for ranges, for many;
            needs cmaes, and draws choices at random) learn from the trials before; `"random"` does
            not.
        pruner: `"median"` ends trials that are worse than the median of the others, once five are
            finished; `"none"` ends those that diverge only.
        seed: Of the sampler.
        fixed: What else decides the scores, in terms of JSON; when a search goes on it must be the
            same.
        verbose: Whether to show a progress bar.

    Returns:
        The `optuna.Study`: `.best_params`, `.best_value`, `.trials`.

    Raises:
        BlockingIOError: If another process has the file.
        ImportError: If Optuna is not installed.
        OSError: If the file cannot be written.
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, the search in `path` is another one, the file
            is damaged, or every trial diverged.

    Example:

    ```python
    from tfmeta import tuning

    def objective(values, callbacks):
        learner = tfmeta.MAML(network(), values["inner_learning_rate"])
        learner.compile(...)
        history = learner.fit(..., validation_data=validation, callbacks=callbacks)
        return history.history["val_accuracy"][-1]

    study = tuning.search(objective, {"inner_learning_rate": "0.01:1.0:log"}, "trials.db")
    print(study.best_params)
    ```
    """
    optuna = optuna_module()
    _check_options(space, trials, sampler, pruner)
    file = Path(path)
    facts = {
        "space": dict(space),
        "sampler": sampler,
        "pruner": pruner,
        "sampler_seed": seed,
        **(fixed or {}),
    }
    states = optuna.trial.TrialState
    finished = (states.COMPLETE, states.PRUNED)
    with one_writer(file.parent, f".tfmeta.{file.name}.lock"), _using(optuna, file):
        if not file.exists():
            _create(file, facts)
        study = _load(file)
        check_same(study.user_attrs["search"], facts, f"the search in '{file}'")
        # In the order of the first time, on which the draws depend.
        distributions = distributions_of(study.user_attrs["search"]["space"])
        study.pruner = (
            optuna.pruners.MedianPruner() if pruner == "median" else optuna.pruners.NopPruner()
        )
        for left in study.get_trials(states=(states.RUNNING,)):
            study.tell(left.number, state=states.FAIL)  # it was interrupted
        done = len(study.get_trials(deepcopy=False, states=finished))
        if done > trials:
            raise ValueError(
                f"`trials` must be at least {done}, as many as '{file}' has. "
                f"Received: trials={trials}"
            )
        progress = keras.utils.Progbar(
            trials, verbose=int(verbose), unit_name="trial", stateful_metrics=["best"]
        )
        while done < trials:
            before = study.get_trials(states=finished)
            study.sampler = sampler_for(sampler, seed, study, distributions, before)
            trial = study.ask(distributions)
            try:
                score = float(objective(dict(trial.params), [_report(trial)]))
            except optuna.TrialPruned:
                study.tell(trial, state=states.PRUNED)
            except ValueError as error:
                # That a rate is too large is an answer; other errors are mistakes.
                if "must be finite" not in str(error):
                    raise
                study.tell(trial, state=states.PRUNED)
            else:
                study.tell(trial, score)
            done += 1
            scores = [t.value for t in study.get_trials(deepcopy=False, states=finished[:1])]
            progress.update(done, [("best", max(scores))] if scores else None)
        if not study.get_trials(deepcopy=False, states=finished[:1]):
            raise ValueError(
                f"`space` must have values for which training converges. Received: {trials} "
                "trials that diverged"
            )
    return study


def tune(
    settings: Settings,
    run: Run,
    parts: tuple[ClassDataset, ...],
    space: Mapping[str, str],
    trials: int = 25,
    *,
    sampler: str = "tpe",
    pruner: str = "median",
    overwrite: bool = False,
    verbose: bool = True,
) -> Any:
    """Search for the settings with the best validation accuracy, and train a run with them.

    The score is the accuracy after the last epoch on the `validation_episodes` of the settings,
    the same for each trial. The best trial is trained once more, with the same seed, into the
    folder of the run. Where the folder has a search already, it goes on.

    Args:
        settings: What is not searched.
        run: The folder, which will have the trials (`trials.db`) and the trained run.
        parts: What `run_data.load_data` returned.
        space: As in `search`; the names are arguments of `tfmeta train`.
        trials: As in `search`.
        sampler: As in `search`.
        pruner: As in `search`.
        overwrite: Begins anew: removes an older search in the folder, and its run.
        verbose: Whether to show progress bars.

    Returns:
        The `optuna.Study`.

    Raises:
        BlockingIOError: If another process writes to the folder.
        ImportError: If Optuna is not installed.
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, the search in the folder is another one, or
            every trial diverged.
    """
    with run.alone():
        return _tune(settings, run, parts, space, trials, sampler, pruner, overwrite, verbose)


def _tune(
    settings: Settings,
    run: Run,
    parts: tuple[ClassDataset, ...],
    space: Mapping[str, str],
    trials: int,
    sampler: str,
    pruner: str,
    overwrite: bool,
    verbose: bool,
) -> Any:
    optuna_module()
    check_space(space, settings.algorithm)
    _check_options(space, trials, sampler, pruner)
    check_count("validation_episodes", settings.validation_episodes)
    # Draws a batch of the largest tasks, which may fail: before older files go.
    most = largest(space, settings.algorithm)
    training.episodes(dataclasses.replace(settings, **most), parts)
    if overwrite:
        _remove(run)

    def objective(values: dict[str, Any], callbacks: list[keras.callbacks.Callback]) -> float:
        keras.utils.clear_session()  # of the trial before
        chosen = with_values(settings, values)
        shape = parts[0].example_shape
        learner = training.new_learner(chosen, shape)
        batches, validation = training.episodes(chosen, parts)
        if not training.trains_over_episodes(learner, chosen, shape):
            training.check_trained_before(chosen)
            return float(learner.evaluate(validation, return_dict=True, verbose=0)["accuracy"])
        history = learner.fit(
            batches,
            steps_per_epoch=chosen.steps,
            epochs=chosen.epochs,
            validation_data=validation,
            callbacks=callbacks,
            verbose=0,
        )
        return float(history.history["val_accuracy"][-1])

    fixed = _not_searched(settings, space)
    study = search(
        objective,
        space,
        trials_file(run),
        trials,
        sampler=sampler,
        pruner=pruner,
        seed=settings.seed,
        fixed=fixed,
        verbose=verbose,
    )
    fields = searchable(settings.algorithm)[0]
    found = {name: value for name, value in study.best_params.items() if name in fields}
    check_values(found, f"'{trials_file(run)}'")
    best = with_values(settings, study.best_params)
    begun = run.settings_file.is_file() and run.settings() == best
    # Layers are called alike, however many trials there were just now.
    keras.utils.clear_session(free_memory=False)
    training.train(best, run, parts, resume=begun, verbose=verbose)
    return study


def _not_searched(settings: Settings, space: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides the scores besides, as a search keeps it that goes on.

    Settings that came later are left out where they are what was the only value before.
    """
    fields = searchable(settings.algorithm)[0]
    values = dataclasses.asdict(settings)
    return {
        name: value
        for name, value in values.items()
        if not (name in space and name in fields)
        and not (name in _CAME_LATER and value == _CAME_LATER[name])
    }


def trials_file(run: Run) -> Path:
    """Return the SQLite file of a search in the folder of a run."""
    return run.path / "trials.db"


def check_free(run: Run, overwrite: bool) -> None:
    """Raise unless a new search may be written into the folder of a run.

    Raises:
        FileExistsError: If the folder holds a search or a run and `overwrite` is false, or holds
            something else.
    """
    if not trials_file(run).exists():
        run.check_free(overwrite)
    elif not overwrite:
        raise FileExistsError(
            f"'{run.path}' holds a search; choose another --output, continue it with --resume, or "
            "replace it with --overwrite"
        )


def started(run: Run) -> dict[str, Any]:
    """Return what the search in the folder of a run was started with.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If its file is damaged.
    """
    file = trials_file(run)
    if not file.is_file():
        raise FileNotFoundError(
            f"'{run.path}' has no search to resume: it has no {file.name}. To begin, run the same "
            "command without --resume"
        )
    with _using(optuna_module(), file):
        facts: dict[str, Any] = _load(file).user_attrs["search"]
    kept = ("images", "classes", "ways")
    check_values({name: facts[name] for name in kept if name in facts}, f"'{file}'")
    return facts


def _check_options(space: Mapping[str, str], trials: int, sampler: str, pruner: str) -> None:
    if not space:
        raise ValueError(
            f"`space` must name at least one argument, with a range or choices ({EXAMPLE}). "
            f"Received: space={space!r}"
        )
    for name, text in space.items():
        values_of(name, text)
    check_count("trials", trials)
    for name, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}."
                f"{did_you_mean(value, known)}"
            )
    check_sampler(sampler, distributions_of(space))


def _report(trial: Any) -> keras.callbacks.Callback:
    """Return the callback that tells a trial's accuracies, and ends it where that is of use."""
    pruned = optuna_module().TrialPruned

    class Report(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            logs = logs or {}
            if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "val_loss")):
                raise pruned(f"diverges in epoch {epoch + 1}")
            if "val_accuracy" not in logs:
                raise KeyError(
                    "`fit` must have `validation_data` and the metric 'accuracy' where it takes "
                    f"these callbacks. Received: {sorted(logs)}"
                )
            trial.report(logs["val_accuracy"], epoch)
            # Behind the last epoch there is nothing left to save.
            if epoch + 1 < self.params["epochs"] and trial.should_prune():
                raise pruned(f"worse than others in epoch {epoch + 1}")

    return Report()


def _create(file: Path, facts: dict[str, Any]) -> None:
    """Write the file of a search without trials, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _journal(file).unlink(missing_ok=True)  # of a file that is gone
    with replacing(file) as beside:
        beside.touch()
        study = optuna_module().create_study(storage=_storage(beside), direction="maximize")
        study.set_user_attr("search", facts)


def _load(file: Path) -> Any:
    check_inside(file.parent, file, *(file.with_name(file.name + end) for end in _ENDS))
    try:
        _check_journal(file)
        with contextlib.closing(_connect(file)) as connection:
            (state,) = connection.execute("PRAGMA quick_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        study = optuna_module().load_study(
            study_name=None, storage=_storage(file, skip_table_creation=True)
        )
        _check_trials(study)
    # What is wrong with a file comes as DatabaseError, KeyError, RuntimeError, ...
    except Exception as error:
        if _said_of_disk(error) is not None:
            raise
        raise ValueError(f"'{file}' is damaged or of another version ({error!r})") from error
    return study


def _check_trials(study: Any) -> None:
    """Raise unless the trials are of the space of the search, which a stranger may have written."""
    known = distributions_of(study.user_attrs["search"]["space"])
    for trial in study.get_trials(deepcopy=False):
        for name, value in trial.params.items():
            of = known[name]
            choices = getattr(of, "choices", None)
            fits = of.low <= value <= of.high if choices is None else value in choices
            if trial.distributions[name] != of or not fits:
                raise ValueError(f"trial {trial.number} has {name}={value!r}")


def _check_journal(file: Path) -> None:
    """Raise unless a journal is of this file alone.

    SQLite would remove the file that the end of a journal names as the one of several databases.
    """
    journal = _journal(file)
    if journal.is_file() and journal.stat().st_size >= 16:
        with journal.open("rb") as opened:
            opened.seek(-8, os.SEEK_END)
            if opened.read() == _OF_SEVERAL:
                raise ValueError(f"'{journal}' is of several databases")


def _storage(file: Path, **options: Any) -> Any:
    from sqlalchemy.pool import NullPool

    # Connections are closed at once: what is finished is in the file. A path inside of a URL would
    # have to be quoted.
    engine = {"creator": lambda: _connect(file), "poolclass": NullPool}
    return optuna_module().storages.RDBStorage("sqlite://", engine, **options)


def _connect(file: Path) -> sqlite3.Connection:
    """Open a file that is there; SQLite would else make an empty one."""
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)
    connection.execute("PRAGMA trusted_schema = OFF")  # a file may have views and triggers
    return connection


def _journal(file: Path) -> Path:
    """SQLite's own, which a process that was killed may leave, and the next one reads."""
    return file.with_name(file.name + "-journal")


def _remove(run: Run) -> None:
    # The journal last: without it a file that was being written would be damaged.
    file = trials_file(run)
    for path in (file, _journal(file), run.settings_file):
        path.unlink(missing_ok=True)
    run.clear()


@contextlib.contextmanager
def _using(optuna: Any, file: Path) -> Iterator[None]:
    """Have Optuna log no line a trial, for there is a progress bar, and say what the disk does."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    except Exception as error:
        said = _said_of_disk(error)
        if said is None and not isinstance(error, optuna.exceptions.StorageInternalError):
            raise
        kept = ". Those that were finished are kept, and the search goes on from them"
        raise OSError(
            f"'{file}': trials cannot be written or read ({said or error.__cause__ or error})"
            f"{kept if file.is_file() else ''}"
        ) from error
    finally:
        optuna.logging.set_verbosity(before)


def _said_of_disk(error: BaseException | None) -> str | None:
    """Return what SQLite has said of the disk, if that is what an error comes from."""
    while error is not None:
        if isinstance(error, sqlite3.OperationalError) and str(error) in _OF_DISK:
            return str(error)
        error = error.__cause__ or error.__context__
    return None
