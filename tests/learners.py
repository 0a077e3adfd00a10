"""Tables of learners, networks that are traced fast, and episodes, for tests of all learners."""

import keras
import numpy as np

import tfmeta

WAYS, SHOTS, QUERIES, TASKS = 3, 2, 4, 4


def network(outputs=WAYS):
    """One block like the four of conv4, which is traced in a quarter of the time.

    It has no kink, on the two sides of which XLA's rounding and TensorFlow's may put a number.
    """
    block = [
        keras.layers.Conv2D(4, 3, 4, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("elu"),
    ]
    head = [] if outputs is None else [keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((12, 12, 1)), *block, keras.layers.Flatten(), *head])


def with_context(encoder):
    """An encoder with a head that is told context parameters, too."""
    layers = [*encoder.layers, tfmeta.layers.Context(3), keras.layers.Dense(WAYS)]
    return keras.Sequential([keras.Input((12, 12, 1)), *layers])


def plain(network):
    """Return what makes each learner of the package as a newcomer would, by name.

    Args:
        network: Makes a model of as many outputs as there are classes; for `None`, an encoder.
    """
    return {
        "MAML": lambda: tfmeta.MAML(network(), 0.1, 2),
        "FOMAML": lambda: tfmeta.FOMAML(network(), 0.1, 2),
        "MAMLPlusPlus": lambda: tfmeta.MAMLPlusPlus(network(), 0.1, 2, tolerance=0.0),
        "MetaSGD": lambda: tfmeta.MetaSGD(network(), 0.1, 2),
        "ANIL": lambda: tfmeta.ANIL(network(), 0.1, 2),
        "BOIL": lambda: tfmeta.BOIL(network(), 0.1, 2),
        "MetaCurvature": lambda: tfmeta.MetaCurvature(network(), 0.1, 2),
        "ImplicitMAML": lambda: tfmeta.ImplicitMAML(network(), 0.1, 3),
        "Reptile": lambda: tfmeta.Reptile(network(), 0.1, 3, inner_batch_size=4),
        "BayesianMAML": lambda: tfmeta.BayesianMAML(network(), 0.1, 2, particles=2),
        "AmortizedBayesianMAML": lambda: tfmeta.AmortizedBayesianMAML(network(), 0.1, 2, samples=2),
        "FineTune": lambda: tfmeta.FineTune(network(), 3, tfmeta.inner_optimizers.SGD(0.1)),
        "ProtoMAML": lambda: tfmeta.ProtoMAML(network(None), 0.01, 2),
        "PrototypicalNetwork": lambda: tfmeta.PrototypicalNetwork(network(None)),
        "PrototypicalNetwork-cosine": lambda: tfmeta.PrototypicalNetwork(
            network(None), "cosine", 10.0
        ),
    }


LEARNERS = {
    "MAML": lambda: tfmeta.MAML(network(), 0.1, 2, evaluation_steps=3),
    "MAML-support": lambda: tfmeta.MAML(network(), 0.1, 2, batch_norm="support", task_chunk=1),
    "MAML-running": lambda: tfmeta.MAML(network(), 0.1, 2, batch_norm="running"),
    # Adam's usual ε makes a step of full length out of the rounding noise of a gradient that is
    # zero, which a bias before batch normalisation has.
    "MAML-Adam": lambda: tfmeta.MAML(
        network(),
        inner_optimizer=tfmeta.inner_optimizers.Adam(1.0, epsilon=1.0),
        inner_clip_norm=10.0,
    ),
    "FOMAML": lambda: tfmeta.FOMAML(network(), 0.1, 2),
    "MAML-with-support": lambda: tfmeta.MAML(network(), 0.1, 2, batch_norm="with_support"),
    "MAML-joint": lambda: tfmeta.MAML(network(), 0.1, 2, joint_weight=0.5),
    # Of the three phases that the next one has, one, for each is traced by itself.
    "MAMLPlusPlus": lambda: tfmeta.MAMLPlusPlus(
        network(),
        0.1,
        2,
        multi_step_loss="discounted",
        cosine_epochs=3,
        outer_clip_norm=10.0,
        tolerance=0.0,
    ),
    "MAMLPlusPlus-phases": lambda: tfmeta.MAMLPlusPlus(
        network(),
        0.1,
        2,
        multi_step_epochs=2,
        first_order_epochs=1,
        cosine_epochs=3,
        outer_clip_norm=10.0,
        tolerance=0.0,
    ),
    "MAMLPlusPlus-running": lambda: tfmeta.MAMLPlusPlus(
        network(), 0.1, 2, multi_step_loss="discounted", batch_norm="running"
    ),
    "MetaSGD": lambda: tfmeta.MetaSGD(network(), 0.1, 2),
    "Reptile": lambda: tfmeta.Reptile(
        network(),
        inner_steps=3,
        inner_optimizer=tfmeta.inner_optimizers.Adam(0.1, beta_1=0.0, epsilon=1.0),
        annealing_steps=100,
    ),
    "ImplicitMAML": lambda: tfmeta.ImplicitMAML(network(), 0.1, 4, cg_steps=3),
    "BayesianMAML": lambda: tfmeta.BayesianMAML(network(), 0.1, 1, particles=2),
    # Draws of training are new ones each time: these are too small to be seen.
    "AmortizedBayesianMAML": lambda: tfmeta.AmortizedBayesianMAML(
        network(), 0.1, 1, samples=2, initial_std=1e-8, kl_weight=0.0
    ),
    "ProtoMAML": lambda: tfmeta.ProtoMAML(network(None), 0.01, 2),
    "ANIL": lambda: tfmeta.ANIL(network(), 0.1, 2),
    "CAVIA": lambda: tfmeta.CAVIA(with_context(network(None)), 0.5, 2),
    "MetaCurvature": lambda: tfmeta.MetaCurvature(network(), 0.1, 2),
    "PrototypicalNetwork": lambda: tfmeta.PrototypicalNetwork(network(None)),
    "PrototypicalNetwork-cosine": lambda: tfmeta.PrototypicalNetwork(
        network(None), "cosine", 10.0, learn_temperature=True
    ),
}


# Metrics of a learner's own.
REPORTS = {
    "MAMLPlusPlus": {"inner_steps"},
    "MAMLPlusPlus-phases": {"inner_steps"},
    "ImplicitMAML": {"cg_residual"},
}


def episodes(seed=0, tasks=TASKS):
    rng = np.random.default_rng(seed)
    y = np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), SHOTS), (tasks, 1))
    targets = np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), QUERIES), (tasks, 1))
    # Each class of each task has a pattern of its own: the tasks can be learnt.
    pattern = rng.random((tasks, WAYS, 1, 12, 12, 1))
    support = pattern + 0.6 * rng.random((tasks, WAYS, SHOTS, 12, 12, 1))
    query = pattern + 0.6 * rng.random((tasks, WAYS, QUERIES, 12, 12, 1))
    inputs = {
        "support_x": support.reshape(tasks, -1, 12, 12, 1).astype("float32"),
        "support_y": y,
        "query_x": query.reshape(tasks, -1, 12, 12, 1).astype("float32"),
    }
    return inputs, targets


# Learners and options that have tests of their own, for a run that may take longer.
SLOW = {
    "FOMAML",
    "MetaSGD",
    "ANIL",
    "CAVIA",
    "MetaCurvature",
    "BayesianMAML",
    "AmortizedBayesianMAML",
    "MAML-support",
    "MAML-running",
    "MAML-with-support",
    "MAML-joint",
    "MAML-Adam",
    "MAMLPlusPlus-phases",
    "MAMLPlusPlus-running",
    "PrototypicalNetwork-cosine",
}
