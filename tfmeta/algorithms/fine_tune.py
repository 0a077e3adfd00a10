"""Fine-tuning: steps of an optimizer on a support set, from weights that were trained before.

Chen, Liu, Kira, Wang and Huang, *A Closer Look at Few-shot Classification*, ICLR 2019, of a new
head; Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, of a part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.checks import check_count
from tfmeta.differentiation import Detached
from tfmeta.fast_weights import FastWeights
from tfmeta.functional import BatchNormMode
from tfmeta.inner_batches import in_batches
from tfmeta.inner_loop import InnerStep
from tfmeta.inner_optimizers import Adam, UpdateRule, check_rule
from tfmeta.types import Nest

# What other learners of the family have in the place of `steps` and `optimizer`.
_OTHERS = ("inner_learning_rate", "inner_steps", "evaluation_steps", "inner_optimizer")


@keras.saving.register_keras_serializable(package="tfmeta")
class FineTune(GradientBased):
    """Fine-tune a network, or a part of it, on the support set of each task.

    `φ_0 = θ`, `φ_{k+1} = φ_k − α ∇L_S(φ_k)` or as the optimizer has it, with the loss given to
    `compile`; θ are the weights of the model, which was trained before. Nothing is learnt over
    tasks, so there is no `fit`: `adapt`, `evaluate`, `tfmeta.evaluate` and `export` work at once.
    Dropout is off, as in every learner's `adapt`.

    Args:
        model: A `keras.Model` with an output for each class. An encoder becomes one by a new head,
            `keras.Sequential([encoder, keras.layers.Dense(ways, kernel_initializer="zeros")])`.
        steps: How many steps are taken.
        optimizer: A rule of `tfmeta.inner_optimizers`; `Adam(0.001)` if `None`.
        adapt_layers: Which weights are fine-tuned: names of layers, paths of variables, or a
            function of a variable that says yes or no; all trainable ones by default. Only the
            weights of Keras's `layer.enable_lora(rank)`:
            `adapt_layers=["lora_kernel_a", "lora_kernel_b"]`.
        inner_batch_size: Examples of the support set in a step, drawn without repetition until all
            were seen; `None`, or more than there are, takes all of them.
        seed: Of the order in which they are drawn, which is the same in each task.
        inner_clip_norm: Scale a gradient down to this norm over all weights, if it is longer.
        batch_norm: Which statistics batch normalisation uses; see `MAML`. `"running"` are those
            that the model was trained with.
        **kwargs: `task_chunk`, `name` and `dtype`, as in `MetaLearner`.

    Raises:
        TypeError: If `model` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range, or the model has no trainable weights. In use: by
            `fit`, and if a support loss is NaN or infinite.

    Example:
        ```python
        encoder.trainable = False                                      # or the whole of it
        model = keras.Sequential([encoder, keras.layers.Dense(5, kernel_initializer="zeros")])
        learner = tfmeta.FineTune(model, 100, tfmeta.inner_optimizers.SGD(0.01, momentum=0.9))
        learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        print(tfmeta.evaluate(learner, test_sampler))
        adapted = learner.adapt(support_x, support_y)
        ```
    """

    one_task = "its steps are a loop that holds the weights of one task"

    def __init__(
        self,
        model: keras.Model,
        steps: int = 50,
        optimizer: UpdateRule | None = None,
        *,
        adapt_layers: str | Sequence[str] | Callable[[keras.Variable], bool] | None = None,
        inner_batch_size: int | None = None,
        seed: int = 0,
        inner_clip_norm: float | None = None,
        batch_norm: BatchNormMode = "running",
        **kwargs: Any,
    ) -> None:
        for name in _OTHERS:
            if name in kwargs:
                raise TypeError(
                    f"FineTune has no argument `{name}`: it has `steps` and `optimizer`. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        rule = Adam() if optimizer is None else optimizer
        check_rule("optimizer", rule)
        check_count("steps", steps)
        check_count("seed", seed, least=0)
        if inner_batch_size is not None:
            check_count("inner_batch_size", inner_batch_size)
        super().__init__(
            model,
            inner_steps=steps,
            inner_optimizer=rule,
            adapt_layers=adapt_layers,
            inner_clip_norm=inner_clip_norm,
            batch_norm=batch_norm,
            **kwargs,
        )
        self.inner_batch_size = inner_batch_size
        self.seed = seed

    @property
    def differentiation(self) -> Detached:
        """Nobody differentiates through the steps; memory does not grow with them."""
        return Detached()

    def inner_step(
        self, support_x: Nest, support_y: Nest, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return how a step is taken, on some of the support set or all of it."""
        step = functools.partial(super().inner_step, weights=weights, training=training)
        order = (-1, self.seed)  # as one of evaluation, which is no outer step's
        return in_batches(
            step, support_x, support_y, self.inner_batch_size, self.inner_steps, order
        )

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there is nothing that is learnt over tasks.

        Raises:
            ValueError: Always.
        """
        del args, kwargs
        raise ValueError(
            "A learner must have something to train over tasks for `fit`. Received: FineTune, "
            "which takes its steps on each task's own support set: `adapt`, `evaluate` and "
            "`export` work without `fit`. What it starts from is trained by the model's own `fit` "
            "or tfmeta.pretrain, as an ordinary classifier, or by tfmeta.MAML(model, ...).fit"
        )

    train_on_batch = fit

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving; `optimizer` is the rule of the steps."""
        names = ["model", "adapt_layers", "inner_batch_size", "seed", "inner_clip_norm"]
        names += ["batch_norm", "task_axis", "task_chunk"]
        arguments = {name: getattr(self, name) for name in names}
        arguments |= {"steps": self.inner_steps, "optimizer": self.inner_optimizer}
        own = {name: keras.saving.serialize_keras_object(x) for name, x in arguments.items()}
        return {**keras.Model.get_config(self), **own}
