"""What draws the values of a search's trials: Optuna's samplers, made anew for each trial.

What a trial draws is a function of the seed and of the trials that were finished before it: so a
search that was killed and goes on is the search that was not.

References:
    - Bergstra, Bardenet, Bengio, Kégl. *Algorithms for Hyper-Parameter Optimization.* NeurIPS 2011.
    - Hansen, Ostermeier. *Completely Derandomized Self-Adaptation in Evolution Strategies.*
      Evolutionary Computation 9, 2001.
    - Jones, Schonlau, Welch. *Efficient Global Optimization of Expensive Black-Box Functions.*
      Journal of Global Optimization 13, 1998.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# What Optuna needs besides itself, and says of it when the first trial asks for it.
_NEEDS = {"gp": ("torch", "scipy"), "cmaes": ("cmaes",)}


def optuna_module() -> Any:
    """Return Optuna.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("A search needs Optuna: pip install 'tfmeta[tune]'") from error
    return optuna


def check_sampler(name: str, distributions: Mapping[str, Any]) -> None:
    """Raise unless a sampler can draw values.

    Args:
        name: One of `SAMPLERS`.
        distributions: Those of Optuna by the names that are searched.

    Raises:
        ImportError: If it needs a package that is not installed; it is named.
        ValueError: If it is CMA-ES, and there is no range.
    """
    for package in _NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"The sampler {name!r} needs {package}, which is not installed: pip install "
                f"{package}. The samplers 'tpe' and 'random' need nothing but Optuna"
            )
    if name == "cmaes" and all(hasattr(one, "choices") for one in distributions.values()):
        raise ValueError(
            "`space` must have a range for the sampler 'cmaes', which draws choices at random. "
            f"Received: choices of {', '.join(distributions)}; 'tpe' and 'gp' take any"
        )


def sampler_for(
    name: str, seed: int, study: Any, distributions: Mapping[str, Any], finished: list[Any]
) -> Any:
    """Return a sampler for the trial that follows the finished ones.

    Args:
        name: One of `SAMPLERS`.
        seed: Of the search.
        study: Its study.
        distributions: Those of Optuna by the names that are searched.
        finished: The trials that were finished, in order.
    """
    samplers = optuna_module().samplers
    if name == "cmaes":
        return _fixed(_next_of_cmaes(seed, study, distributions, finished))
    of_trial = int(np.random.SeedSequence([seed, len(finished)]).generate_state(1)[0])
    if name == "gp":
        return samplers.GPSampler(seed=of_trial, warn_independent_sampling=False)
    kind = samplers.TPESampler if name == "tpe" else samplers.RandomSampler
    return kind(seed=of_trial)


def _next_of_cmaes(
    seed: int, study: Any, distributions: Mapping[str, Any], finished: list[Any]
) -> dict[str, Any]:
    """Return what CMA-ES draws next, after it has been told of the finished trials once more.

    Optuna keeps its state as a pickle beside the trials, and counts interrupted trials. So it goes
    through the trials again in memory, each time: no pickle is read of a file, which may be a
    stranger's, and what was interrupted leaves no trace.
    """
    optuna = optuna_module()
    sampler = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    again = optuna.create_study(sampler=sampler, direction=study.direction.name.lower())
    for trial in finished:
        repeated = again.ask(dict(distributions))
        if not _same(repeated.params, trial.params):
            raise ValueError(
                f"Trial {trial.number} must have the values that CMA-ES draws with this seed. "
                f"Received: {trial.params}, not {repeated.params}: it was drawn by another "
                "version of Optuna or of cmaes, with which the search goes on"
            )
        again.tell(repeated, values=trial.values, state=trial.state)
    drawn: dict[str, Any] = again.ask(dict(distributions)).params
    return drawn


def _same(some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Return whether values are alike, but for how processors round."""
    return some.keys() == others.keys() and all(
        math.isclose(value, others[name], rel_tol=1e-6)
        if isinstance(value, float) and isinstance(others[name], float)
        else value == others[name]
        for name, value in some.items()
    )


def _fixed(values: Mapping[str, Any]) -> Any:
    """Return a sampler that draws these values."""
    base = optuna_module().samplers.BaseSampler

    class Fixed(base):  # type: ignore[misc, valid-type]
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(
            self, study: Any, trial: Any, param_name: str, param_distribution: Any
        ) -> Any:
            return values[param_name]

    return Fixed()
