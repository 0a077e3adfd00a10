"""Methods from outside of the package have what its own have, by public names alone."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.rows import rows

WAYS, TASKS = 3, 5
DOCUMENT = Path(__file__).parents[2] / "docs" / "new_algorithm.md"


class NearestMean(tfmeta.MetaLearner):
    """The example of `MetaLearner`'s docstring."""

    def adapt_task(self, support_x, support_y, *, training):
        z = self.model(support_x, training=training)
        return tfmeta.ops.prototypes(z[None], support_y[None], ways=3)

    def predict_task(self, state, query_x, *, training):
        z = self.model(query_x, training=training)
        return -tfmeta.ops.squared_euclidean(z[None], state)[0]


def test_two_functions_make_a_learner():
    rng = np.random.default_rng(0)
    learner = NearestMean(tfmeta.models.mlp((5,), 4))
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.tile(np.arange(3, dtype=np.int32), (2, 1))
    x, q = rng.normal(size=(2, 2, 3, 5)).astype("float32")
    inputs = {"support_x": x, "support_y": y, "query_x": q}
    learner.train_on_batch(inputs, y)
    adapted = learner.adapt(x[0], y[0])
    expected = learner.predict_on_batch(inputs)[0]
    np.testing.assert_allclose(adapted.predict(q[0], verbose=0), expected, atol=1e-6)
    learner.train_on_batch(inputs, y)
    np.testing.assert_allclose(adapted.predict(q[0], verbose=0), expected, atol=1e-6)


def r2d2():
    """Return the class that the document builds."""
    program = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert program is not None
    names: dict[str, object] = {"__name__": __name__}
    exec(program[1], names)
    return names["R2D2"]


R2D2 = r2d2()


def learner_of(dtype="float32", **options):
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", dtype=dtype),
            keras.layers.Dense(4, dtype=dtype),
        ]
    )
    learner = R2D2(encoder, WAYS, ridge=0.5, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return learner


def episodes(dtype="float32"):
    rng = np.random.default_rng(1)
    y = np.tile(np.repeat(np.arange(WAYS, dtype="int32"), 2), (TASKS, 1))
    x, q = rng.normal(size=(2, TASKS, 2 * WAYS, 6)).astype(dtype)
    return {"support_x": x, "support_y": y, "query_x": q}, y


def test_the_closed_form_of_all_tasks_at_once(float64):
    learner = learner_of(dtype=None)
    inputs, _ = episodes("float64")
    outputs = learner.predict_on_batch(inputs)
    assert learner.packs
    for task in range(TASKS):
        z, q = (learner.model(inputs[name][task]).numpy() for name in ("support_x", "query_x"))
        y = np.eye(WAYS)[inputs["support_y"][task]]
        w = z.T @ np.linalg.solve(z @ z.T + 0.5 * np.eye(len(z)), y)
        np.testing.assert_allclose(outputs[task], q @ w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "xla"),
    rows(
        [(x, False) for x in ("float32", "mixed_bfloat16", "mixed_float16")] + [("float32", True)],
        [("mixed_bfloat16", False), ("float32", True)],
    ),
)
def test_trains_as_in_turn_in_any_precision(dtype, xla):
    inputs, targets = episodes()
    ends = []
    for axis in ("packed", "loop"):
        learner = learner_of(dtype, task_axis=axis)
        learner.jit_compile = xla
        learner.fit(inputs, targets, batch_size=TASKS, epochs=2, verbose=0)
        assert learner.packs == (axis == "packed")
        ends.append([learner.predict_on_batch(inputs), *learner.get_weights()])
    atol = 1e-6 if dtype == "float32" else 0.02
    for packed, in_turn in zip(*ends, strict=True):
        np.testing.assert_allclose(packed, in_turn, atol=atol)
    assert ends[0][0].dtype == np.float32


def test_a_smaller_task_is_computed_by_itself():
    inputs, targets = episodes()
    learner = learner_of()
    seen = np.ones(targets.shape, bool)
    seen[0, -1] = False
    spoilt = {name: x.copy() for name, x in inputs.items()}
    spoilt["support_x"][0, -1] = np.nan
    masks = {"support_mask": seen, "query_mask": np.ones(targets.shape, bool)}
    outputs = learner.predict_on_batch({**spoilt, **masks})
    alone = learner.adapt(inputs["support_x"][0, :-1], inputs["support_y"][0, :-1])
    np.testing.assert_allclose(outputs[0], alone.predict_on_batch(inputs["query_x"][0]), atol=1e-6)
    np.testing.assert_allclose(outputs[1:], learner.predict_on_batch(inputs)[1:], atol=1e-6)


def test_wrong_labels_are_refused():
    inputs, targets = episodes()
    learner = learner_of()
    wrong = {**inputs, "support_y": inputs["support_y"] + 7}
    with pytest.raises(ValueError, match=r"labels must be in 0..2.*labels from 7 to 9"):
        learner.fit(wrong, targets, verbose=0)
    with pytest.raises(ValueError, match=r"labels must be in 0..2.*labels from 7 to 9"):
        learner.adapt(wrong["support_x"][0], wrong["support_y"][0])
    with pytest.raises(ValueError, match=r"`targets` must be the class numbers 0..2"):
        learner.fit(inputs, targets + 1, verbose=0)
    with pytest.raises(ValueError, match=r"`loss` must take logits, for R2D2 returns logits"):
        learner.compile("sgd", "sparse_categorical_crossentropy")


def test_files(tmp_path):
    inputs, targets = episodes()
    learner = learner_of()
    learner.train_on_batch(inputs, targets)
    expected = learner.predict_on_batch(inputs)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert (loaded.ways, loaded.ridge) == (WAYS, 0.5)
    np.testing.assert_array_equal(loaded.predict_on_batch(inputs), expected)
    learner.export(tmp_path / "exported")
    exported = tf.saved_model.load(tmp_path / "exported")
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    task = exported.adapt(support_x=x, support_y=y.astype("int64"))
    assert list(task) == ["weights"]
    predictions = exported.predict(query_x=q, **task)["predictions"]
    np.testing.assert_allclose(predictions, expected[0], atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"class numbers 0..2"):
        exported.adapt(support_x=x, support_y=y.astype("int64") + 7)


@keras.saving.register_keras_serializable(package="tests")
class Relation(tfmeta.MetaLearner):
    """A learner with a second model, an argument of it."""

    batched = True

    def __init__(self, model, relation, **kwargs):
        super().__init__(model, **kwargs)
        self.relation = relation

    def adapt_task(self, support_x, support_y, *, training):
        return tf.reduce_mean(self.embed(support_x, training=training), axis=-2, keepdims=True)

    def predict_task(self, state, query_x, *, training):
        z = self.embed(query_x, training=training)
        return self.embed(z - state, training=training, model=self.relation)


def test_a_second_model_is_trained_and_saved(tmp_path):
    inputs, _ = episodes()
    targets = np.ones((TASKS, 2 * WAYS, 1), "float32")
    relation = keras.Sequential([keras.layers.Dense(1)])
    learner = Relation(tfmeta.models.mlp((6,), 4), relation)
    learner.compile("sgd", "mean_squared_error")
    with pytest.raises(ValueError, match=r"must be built when it is.*model 'sequential"):
        learner.fit(inputs, targets, verbose=0)
    relation.build((None, 4))
    before = relation.get_weights()[0]
    learner.fit(inputs, targets, verbose=0)
    assert np.any(relation.get_weights()[0] != before)
    assert [model.name for model in learner.models()] == [learner.model.name, relation.name]
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    expected = learner.predict_on_batch(inputs)
    np.testing.assert_allclose(loaded.predict_on_batch(inputs), expected, atol=1e-6)


class Forgetful(NearestMean):
    """A learner that does not keep its argument."""

    def __init__(self, model, ways, **kwargs):
        super().__init__(model, **kwargs)


def test_an_argument_that_is_not_kept(tmp_path):
    learner = Forgetful(tfmeta.models.mlp((5,), 4), 3)
    with pytest.raises(TypeError, match=r"an attribute for each argument.*no Forgetful\.ways"):
        learner.get_config()
    with pytest.raises(TypeError, match=r"Forgetful has no argument `way`\. Received: 3"):
        Forgetful(tfmeta.models.mlp((5,), 4), 3, way=3)


class Scale(keras.layers.Layer):
    """A layer that tfmeta does not know."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="factor")

    def call(self, inputs):
        return inputs * self.factor


def test_a_rule_for_a_layer():
    inputs, targets = episodes()
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((6,)), dense(4, "tanh"), Scale(), dense(WAYS)])

    def maml(axis):
        learner = tfmeta.MAML(model, 0.3, 2, task_axis=axis)
        learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return learner

    with pytest.raises(ValueError, match=r"\(Scale\) has no rule"):
        maml("packed").fit(inputs, targets, verbose=0)

    @tfmeta.packed.register_rule(Scale)
    def scaled(layer, inputs, trace):
        return inputs * trace.weight(layer.factor, inputs.dtype)[:, None]

    packed, in_turn = (maml(axis).predict_on_batch(inputs) for axis in ("packed", "loop"))
    np.testing.assert_allclose(packed, in_turn, atol=1e-6)
    for wrong in (Scale(), dict):
        with pytest.raises(TypeError, match="`layer` must be a class of Keras layers"):
            tfmeta.packed.register_rule(wrong)
    with pytest.raises(TypeError, match="`arguments` must be names"):
        tfmeta.packed.register_rule(Scale, ["units"])
