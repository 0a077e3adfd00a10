"""The learners that the command trains, by the names that it has for them.

Nothing here imports TensorFlow: what a learner's arguments are is read of its constructor, by
`tfmeta.learner_arguments`, when one is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# What is trained with where nothing is said: with an inner loop, and with a head on embeddings.
_LOOP = {"ways": 5, "meta_batch_size": 16, "steps": 200}
_HEAD = {"ways": 20, "meta_batch_size": 1, "steps": 100}


class Named(NamedTuple):
    """What is known of a learner before it is imported.

    Attributes:
        python: Its name in `tfmeta`.
        fixed_ways: Whether it takes a model with an output for each class, which fixes how many
            classes a task has; otherwise it takes an encoder, and tasks of any number.
        inner_loop: Whether it takes steps down a task's support loss.
        without: The arguments of its base that it has not, for it sets them itself.
    """

    python: str
    fixed_ways: bool
    inner_loop: bool
    without: tuple[str, ...] = ()

    @property
    def defaults(self) -> dict[str, int]:
        """The options that depend on the learner, and what they are where nothing is said."""
        return dict(_LOOP if self.inner_loop else _HEAD)


def _loop(python: str, *without: str) -> Named:
    return Named(python, True, True, without)


def _head(python: str) -> Named:
    return Named(python, False, False)


LEARNERS: Mapping[str, Named] = MappingProxyType(
    {
        "maml": _loop("MAML"),
        "fomaml": _loop("FOMAML", "first_order"),
        "maml++": _loop("MAMLPlusPlus"),
        "meta-sgd": _loop("MetaSGD", "learned_rates"),
        "meta-curvature": _loop("MetaCurvature"),
        "anil": _loop("ANIL", "adapt_layers"),
        "boil": _loop("BOIL", "adapt_layers"),
        "cavia": _loop("CAVIA", "adapt_layers"),
        "proto-maml": Named("ProtoMAML", fixed_ways=False, inner_loop=True),
        "implicit-maml": _loop("ImplicitMAML"),
        "reptile": _loop("Reptile"),
        "bayesian-maml": _loop("BayesianMAML", "inner_clip_norm"),
        "amortized-bayesian-maml": _loop("AmortizedBayesianMAML"),
        "fine-tune": _loop(
            "FineTune",
            "inner_learning_rate",
            "inner_steps",
            "evaluation_steps",
            "inner_optimizer",
        ),
        "prototypical": _head("PrototypicalNetwork"),
        "simple-shot": _head("SimpleShot"),
        "k-nearest-neighbors": _head("KNearestNeighbors"),
        "logistic-regression": _head("LogisticRegression"),
        "r2d2": _head("R2D2"),
        "meta-opt-net": _head("MetaOptNet"),
        "baseline++": _head("BaselinePlusPlus"),
        "matching-network": _head("MatchingNetwork"),
        "relation-network": _head("RelationNetwork"),
        "feat": _head("FEAT"),
        "soft-k-means": _head("SoftKMeans"),
        "label-propagation": _head("LabelPropagation"),
        "tim": _head("TIM"),
    }
)
"""One entry for each learner of `tfmeta.algorithms`."""


def by_family(option: str) -> str:
    """Say an option's default, which an inner loop decides."""
    return f"{_LOOP[option]} for learners with an inner loop, {_HEAD[option]} for others"
