"""An embedding, whose gradient is some rows, trains as the product with one-hot rows does."""

import keras
import numpy as np
import pytest
from keras import layers

import tfmeta
from tests.rows import rows

WORDS, LENGTH, TASKS, SUPPORT, QUERIES = 6, 3, 2, 4, 3


@keras.saving.register_keras_serializable(package="tests")
class Table(layers.Layer):
    """A dense embedding: one-hot rows times a matrix."""

    def build(self, shape):
        self.table = self.add_weight(shape=(WORDS, 2), initializer="uniform", name="table")

    def call(self, words):
        return keras.ops.one_hot(words, WORDS) @ self.table


def model_with(kind):
    keras.utils.set_random_seed(1)
    table = layers.Embedding(WORDS, 2) if kind is layers.Embedding else kind()
    rest = [layers.Flatten(), layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), table, *rest])


def episodes():
    random = np.random.default_rng(0)
    # Not all words are in a task.
    x = random.integers(1, WORDS, size=(TASKS, SUPPORT + QUERIES, LENGTH), dtype="int32")
    y = np.tile(np.arange(SUPPORT + QUERIES) % 2, (TASKS, 1))
    inputs = {"support_x": x[:, :SUPPORT], "support_y": y[:, :SUPPORT], "query_x": x[:, SUPPORT:]}
    return inputs, y[:, SUPPORT:]


CASES = {
    "MAML": (tfmeta.MAML, {}),
    "MAML recomputed": (tfmeta.MAML, {"recompute": True, "joint_weight": 0.5}),
    "MAML packed and recomputed": (tfmeta.MAML, {"recompute": True, "task_axis": "packed"}),
    "FOMAML": (tfmeta.FOMAML, {"inner_clip_norm": 0.1}),
    "MAML++": (
        tfmeta.MAMLPlusPlus,
        {"recompute": True, "tolerance": 1e-3, "multi_step_loss": None},
    ),
    "implicit": (tfmeta.ImplicitMAML, {}),
    "implicit, head": (tfmeta.ImplicitMAML, {"adapt_layers": "head"}),
    "Reptile": (tfmeta.Reptile, {"inner_optimizer": tfmeta.inner_optimizers.Adam(0.1)}),
    "ProtoMAML": (tfmeta.ProtoMAML, {"recompute": True}),
    "prototypes": (lambda model, *_, **kwargs: tfmeta.PrototypicalNetwork(model, **kwargs), {}),
}


SLOW = {"MAML", "MAML recomputed", "implicit", "MAML++", "ProtoMAML"}


@pytest.mark.parametrize("name", rows(CASES, SLOW))
def test_an_embedding_trains_as_a_dense_table_does(name):
    make, options = CASES[name]
    results, start = [], model_with(layers.Embedding).get_weights()
    for kind, axis in ((layers.Embedding, options.get("task_axis", "loop")), (Table, "loop")):
        model = model_with(kind)
        model.set_weights(start)
        learner = make(model, 0.2, 2, **{**options, "task_axis": axis})
        learner.compile(
            keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        loss = learner.train_on_batch(*episodes())
        results.append([np.array(loss), *model.get_weights()])
    assert np.any(results[0][1] != start[0])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_particles_have_embeddings():
    learner = tfmeta.BayesianMAML(model_with(layers.Embedding), 0.2, 2, particles=2)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = learner.get_weights()
    learner.train_on_batch(*episodes())
    assert all(np.all(np.isfinite(w)) for w in learner.get_weights())
    assert np.any(learner.get_weights()[0] != before[0])
