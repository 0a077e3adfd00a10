"""The outer gradient of every learner on a small problem, to be compared between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WAYS, SHOTS, QUERIES, TASKS, SIDE = 4, 2, 3, 3, 16
SEQUENCE = (7, 6)
# Which layer makes the last features of a sequence.
OF_SEQUENCES = ("LSTM", "GRU", "attention")


def images(outputs: int | None = WAYS, pool: bool = False) -> Any:
    """Return a network with tanh, for the slope of a ReLU jumps where rounding decides."""
    import keras
    from keras import layers

    x = inputs = keras.Input((SIDE, SIDE, 1))
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, 1 if pool else 2, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("tanh")(x)
        x = layers.MaxPooling2D()(x) if pool else x
    x = layers.Flatten()(x)
    return keras.Model(inputs, x if outputs is None else layers.Dense(outputs)(x))


def sequences(kind: str) -> Any:
    import keras
    from keras import layers

    x = inputs = keras.Input(SEQUENCE)
    if kind == "attention":
        x = layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 3)(x, x))
    else:
        x = getattr(layers, kind)(9)(x)
    return keras.Model(inputs, layers.Dense(WAYS)(x))


def with_context(context: Any) -> Any:
    """Return the network with a layer of context parameters in front of its head."""
    import keras
    from keras import layers

    body = images(None)
    return keras.Model(body.inputs, layers.Dense(WAYS)(context(body.outputs[0])))


# How each is made of the package, which a list of their names should not have to import. What is
# drawn at random in training is kept too small to be seen.
LEARNERS: dict[str, Callable[[Any], Any]] = {
    "MAML": lambda t: t.MAML(images(), 0.1, 3),
    "MAML-pooled": lambda t: t.MAML(images(pool=True), 0.1, 2),
    "MAML-loop": lambda t: t.MAML(images(), 0.1, 2, task_axis="loop"),
    "MAML-recompute": lambda t: t.MAML(images(), 0.1, 3, recompute=True),
    "MAML-Adam": lambda t: t.MAML(
        images(), inner_steps=2, inner_optimizer=t.inner_optimizers.Adam(0.01, epsilon=0.1)
    ),
    **{f"MAML-{k}": lambda t, k=k: t.MAML(sequences(k), 0.1, 2) for k in OF_SEQUENCES},
    "FOMAML": lambda t: t.FOMAML(images(), 0.1, 3),
    "MAMLPlusPlus": lambda t: t.MAMLPlusPlus(images(), 0.1, 3),
    "MetaSGD": lambda t: t.MetaSGD(images(), 0.1, 2),
    "ANIL": lambda t: t.ANIL(images(), 0.1, 3),
    "BOIL": lambda t: t.BOIL(images(), 0.1, 3),
    "CAVIA": lambda t: t.CAVIA(with_context(t.layers.Context(3)), 0.5, 2),
    "MetaCurvature": lambda t: t.MetaCurvature(images(), 0.1, 2),
    "ProtoMAML": lambda t: t.ProtoMAML(images(None), 0.1, 3),
    "Reptile": lambda t: t.Reptile(images(), 0.1, 3),
    "ImplicitMAML": lambda t: t.ImplicitMAML(images(), 0.1, 3),
    "BayesianMAML": lambda t: t.BayesianMAML(images(), 0.1, 2, particles=2),
    "AmortizedBayesianMAML": lambda t: t.AmortizedBayesianMAML(
        images(), 0.1, 2, initial_std=1e-8, kl_weight=0.0
    ),
    "SimpleShot": lambda t: t.SimpleShot(images(None)),
    "LogisticRegression": lambda t: t.LogisticRegression(images(None)),
    "R2D2": lambda t: t.R2D2(images(None)),
    "BaselinePlusPlus": lambda t: t.BaselinePlusPlus(images(None), 10),
    "MatchingNetwork": lambda t: t.MatchingNetwork(images(None)),
    "MatchingNetwork-context": lambda t: t.MatchingNetwork(images(None), True),
    "RelationNetwork": lambda t: t.RelationNetwork(images(None)),
    # Masks of dropout are drawn otherwise on each kind of device.
    "FEAT": lambda t: t.FEAT(images(None), dropout=0.0),
    "SoftKMeans": lambda t: t.SoftKMeans(images(None), 2, transductive=True),
    "LabelPropagation": lambda t: t.LabelPropagation(images(None), 5),
    "MetaOptNet": lambda t: t.MetaOptNet(images(None)),
    "PrototypicalNetwork": lambda t: t.PrototypicalNetwork(images(None)),
    "PrototypicalNetwork-cosine": lambda t: t.PrototypicalNetwork(images(None), "cosine", 10.0),
}


def gradients(name: str, jit_compile: bool) -> list[Any]:
    """Return the outer gradients in single precision; TensorFloat-32 is for the caller to set."""
    import keras
    import numpy as np
    from meta_step import first_moments

    import tfmeta

    keras.utils.set_random_seed(0)
    learner = LEARNERS[name](tfmeta)
    learner.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    rng = np.random.default_rng(0)
    shape = SEQUENCE if name.endswith(OF_SEQUENCES) else (SIDE, SIDE, 1)

    def part(number: int) -> tuple[Any, Any]:
        x = rng.random((TASKS, WAYS * number, *shape), np.float32)
        return x, np.tile(np.repeat(np.arange(WAYS), number), (TASKS, 1))

    (support_x, support_y), (query_x, query_y) = part(SHOTS), part(QUERIES)
    inputs = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    learner.train_on_batch(inputs, query_y)
    # Adam's first moments after one step are a tenth of the gradients.
    return first_moments(learner)
