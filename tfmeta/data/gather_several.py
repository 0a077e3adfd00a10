"""Meta-batches of examples of several inputs: the same positions, gathered of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfmeta.data.augmentation import Augmentation
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.gather import Gather
from tfmeta.data.normalization import Numbers
from tfmeta.data.several_inputs import by_input
from tfmeta.types import Array, Episodes

_EXAMPLES = ("support_x", "query_x", "unlabelled_x")


def gather_of(
    dataset: ClassDataset,
    augmentation: Augmentation | Mapping[str, Augmentation] | None,
    mean: Numbers | Mapping[str, Numbers] | None,
    std: Numbers | Mapping[str, Numbers] | None,
    num_threads: int | None,
) -> Gather | GatherSeveral:
    """Return what makes meta-batches of a data set's examples, of one input or several.

    Args:
        dataset, augmentation, mean, std, num_threads: As for `EpisodeSampler`.
    """
    if isinstance(dataset, ClassDataset) and isinstance(dataset.examples, dict):
        return GatherSeveral(dataset, augmentation, mean, std, num_threads)
    options = {"augmentation": augmentation, "mean": mean, "std": std}
    one: Any = {name: by_input(name, value, None).get("") for name, value in options.items()}
    return Gather(dataset, **one, num_threads=num_threads)


class GatherSeveral:
    """A `Gather` of each input, called as one.

    Args:
        dataset: Whose examples, of several inputs.
        augmentation, mean, std: Those of the inputs that have any, by name.
        num_threads: As for `EpisodeSampler`.
    """

    def __init__(
        self, dataset: ClassDataset, augmentation: Any, mean: Any, std: Any, num_threads: int | None
    ) -> None:
        names = list(dataset.examples)
        options = {
            option: by_input(option, value, names)
            for option, value in (("augmentation", augmentation), ("mean", mean), ("std", std))
        }
        self._each = {
            name: Gather(
                dataset.input(name),
                **{option: values.get(name) for option, values in options.items()},
                num_threads=num_threads,
            )
            for name in names
        }
        self.num_threads = self._each[names[0]].num_threads

    def __call__(self, support: Array, query: Array, turns: Array, **options: Any) -> Episodes:
        """Return `(inputs, targets)`, as `Gather` does, with dicts of examples.

        Args:
            support, query, turns, **options: As for `Gather`.
        """
        batches = {
            name: gather(support, query, turns, **options) for name, gather in self._each.items()
        }
        inputs, targets = next(iter(batches.values()))
        together: dict[str, Any] = dict(inputs)
        for part in _EXAMPLES:
            if part in inputs:
                together[part] = {name: batch[0][part] for name, batch in batches.items()}
        return together, targets
