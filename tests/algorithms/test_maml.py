"""The outer gradients of MAML and FOMAML against closed forms, a fixture and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tfmeta import inner_optimizers

DIM = 4
RNG = np.random.default_rng(7)
ROOT = RNG.normal(size=(DIM, DIM)) / 2 + np.eye(DIM)
HESSIAN = ROOT @ ROOT.T
START = RNG.normal(size=DIM)
CENTRES = RNG.normal(size=(3, 1, DIM))


class Quadratic(keras.layers.Layer):
    """`(φ − x) L`, so that half its squared length is `½ (φ−x)ᵀ A (φ−x)` with `A = L Lᵀ`."""

    def build(self, input_shape):
        self.phi = self.add_weight(shape=(DIM,), initializer="zeros")

    def call(self, x):
        return tf.linalg.matmul(self.phi - x, tf.constant(ROOT))


def half_square(_, predictions):
    return 0.5 * tf.reduce_sum(predictions**2, axis=-1)


def outer_gradient(learner, inputs, targets):
    """Read the gradient off a step of plain gradient descent with rate 1."""
    learner.compile(keras.optimizers.SGD(1.0), loss=learner.loss, jit_compile=False)
    before = [v.numpy() for v in learner.trainable_variables]
    learner.train_on_batch(inputs, targets)
    after = [v.numpy() for v in learner.trainable_variables]
    for variable, value in zip(learner.trainable_variables, before, strict=True):
        variable.assign(value)
    return [b - a for b, a in zip(before, after, strict=True)]


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("first_order", [False, True])
def test_closed_form_on_quadratics(float64, steps, first_order):
    """Bᴷ A Bᴷ (θ−c) and A Bᴷ (θ−c), B = I − αA, averaged over three tasks."""
    rate = 0.1
    model = keras.Sequential([keras.Input((DIM,)), Quadratic()])
    model.trainable_variables[0].assign(START)
    learner = tfmeta.MAML(model, rate, steps, first_order)
    learner.compile("sgd", loss=half_square)
    zeros = np.zeros((3, 1, DIM))
    inputs = {"support_x": CENTRES, "support_y": zeros, "query_x": CENTRES}
    (gradient,) = outer_gradient(learner, inputs, zeros)

    b_k = np.linalg.matrix_power(np.eye(DIM) - rate * HESSIAN, steps)
    factor = HESSIAN @ b_k if first_order else b_k @ HESSIAN @ b_k
    expected = np.mean([factor @ (START - c[0]) for c in CENTRES], axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def linear_learner(first_order):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[2.0], [3.0], [5.0]])])
    learner = tfmeta.MAML(model, 0.5, 1, first_order)
    learner.compile("sgd", loss=half_square)
    return learner


@pytest.mark.parametrize(
    ("first_order", "support", "query", "adapted", "loss", "gradient"),
    [
        (False, [1, 2, 3], [4, 5, 6], [-9.5, -20, -29.5], 49612.5, [3780, 8505, 13230]),
        (True, [4, 5, 6], [1, 2, 3], [-104, -129.5, -154], 340312.5, [-825, -1650, -2475]),
    ],
)
def test_published_fixture(float64, first_order, support, query, adapted, loss, gradient):
    """f(x) = ½ (x·w)², w = [2, 3, 5], α = ½, one step."""
    learner = linear_learner(first_order)
    x, q, zero = np.array([[support]], float), np.array([[query]], float), np.zeros((1, 1, 1))
    inputs = {"support_x": x, "support_y": zero, "query_x": q}
    np.testing.assert_allclose(learner.adapt(x[0], zero[0]).get_weights()[0][:, 0], adapted)
    prediction = learner.predict_on_batch(inputs)
    np.testing.assert_allclose(0.5 * prediction**2, [[[loss]]])
    np.testing.assert_allclose(outer_gradient(learner, inputs, zero)[0][:, 0], gradient)


def small_conv(downsample="stride"):
    """Two blocks of what conv4 has four of, which is traced in half the time."""
    layers = [keras.Input((8, 8, 1))]
    for _ in range(2):
        layers += [
            keras.layers.Conv2D(4, 3, 2 if downsample == "stride" else 1, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
        if downsample == "pool":
            layers.append(keras.layers.MaxPooling2D())
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(3)])


def conv_task(tasks=2):
    rng = np.random.default_rng(3)
    labels = np.tile(np.repeat(np.arange(3, dtype=np.int32), 2), (tasks, 1))
    x, q = rng.normal(size=(2, tasks, 6, 8, 8, 1))
    return {"support_x": x, "support_y": labels, "query_x": q}, labels


@pytest.mark.parametrize(
    ("batch_norm", "downsample"),
    [
        ("transductive", "pool"),
        *(
            pytest.param(*how, marks=pytest.mark.slow)
            for how in (
                *(("transductive", "stride"), ("support", "stride"), ("running", "stride")),
                *(("support", "pool"), ("running", "pool")),
            )
        ),
    ],
)
def test_second_order_gradient_by_finite_differences(float64, batch_norm, downsample):
    """K = 3 through convolution, batch normalisation and pooling, along random directions."""
    keras.utils.set_random_seed(1)
    learner = tfmeta.MAML(small_conv(downsample), 0.05, 3, batch_norm=batch_norm)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("sgd", loss=loss)
    inputs, targets = conv_task()
    learner.build({k: v.shape for k, v in inputs.items()})
    gradients = outer_gradient(learner, inputs, targets)

    @tf.function
    def outer_loss():
        return loss(targets, learner(inputs, training=True))

    assert_directional_derivatives(learner.trainable_variables, gradients, outer_loss)


@pytest.mark.parametrize(
    "options",
    [
        {"inner_optimizer": inner_optimizers.SGD(0.05, 0.9)},
        pytest.param({"inner_optimizer": inner_optimizers.RMSprop(0.01)}, marks=pytest.mark.slow),
        {"inner_optimizer": inner_optimizers.Adam(0.01)},
        {"inner_clip_norm": 0.1},
        pytest.param({"inner_clip_norm": 1e3}, marks=pytest.mark.slow),
    ],
    ids=["momentum", "RMSprop", "Adam", "clipped", "far from clipped"],
)
def test_gradient_through_inner_optimizers_by_finite_differences(float64, options):
    """K = 3 through the rules' slots, and through the clipping."""
    keras.utils.set_random_seed(1)
    model = tfmeta.models.mlp((5,), 3, units=(6,))
    learner = tfmeta.MAML(model, 0.05, 3, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("sgd", loss=loss)
    inputs, targets = vector_task()
    inputs = {k: v.astype(float) if v.dtype == np.float32 else v for k, v in inputs.items()}
    gradients = outer_gradient(learner, inputs, targets)

    @tf.function
    def outer_loss():
        return loss(targets, learner(inputs, training=True))

    assert_directional_derivatives(learner.trainable_variables, gradients, outer_loss)


def test_clipping_by_hand():
    """One step of length clip times rate, in the gradient's direction."""
    inputs, _ = vector_task()
    x, y = inputs["support_x"][0], inputs["support_y"][0]
    model = tfmeta.models.mlp((5,), 3, units=(6,))
    steps = []
    for options in ({}, {"inner_clip_norm": 0.01}, {"inner_clip_norm": 1e3}):
        learner = tfmeta.MAML(model, 0.5, 1, **options)
        learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        after = learner.adapt(x, y).get_weights()
        change = [a - b for a, b in zip(after, model.get_weights(), strict=True)]
        steps.append(np.concatenate([c.ravel() for c in change]))
    plain, clipped, loose = steps
    np.testing.assert_allclose(np.linalg.norm(clipped), 0.5 * 0.01, rtol=1e-3)
    np.testing.assert_allclose(clipped, plain * 0.005 / np.linalg.norm(plain), atol=1e-6)
    np.testing.assert_allclose(loose, plain, atol=1e-6)


def test_first_order_gradient_by_finite_differences(float64):
    """FOMAML's gradient is the query loss's at the adapted weights, θ and φ moving together."""
    keras.utils.set_random_seed(1)
    learner = tfmeta.FOMAML(small_conv(), 0.05, 3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("sgd", loss=loss)
    inputs, targets = conv_task(tasks=1)
    gradients = outer_gradient(learner, inputs, targets)
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])

    @tf.function
    def query_loss():
        return loss(targets[0], adapted(inputs["query_x"][0]))

    assert_directional_derivatives(adapted.trainable_variables, gradients, query_loss)


def assert_directional_derivatives(variables, gradients, function, step=1e-6):
    rng = np.random.default_rng(5)
    start = [v.numpy() for v in variables]

    def at(offset, direction):
        for v, s, d in zip(variables, start, direction, strict=True):
            v.assign(s + offset * d)
        return float(function())

    for _ in range(5):
        direction = [rng.normal(size=s.shape) for s in start]
        numeric = (at(step, direction) - at(-step, direction)) / (2 * step)
        analytic = sum(np.sum(g * d) for g, d in zip(gradients, direction, strict=True))
        np.testing.assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-9)


def test_chunks_give_the_same_step():
    """One, two, three and six tasks in flight train the same weights."""
    weights = []
    for chunk in (1, 2, 4, 6):
        keras.utils.set_random_seed(1)
        learner = tfmeta.MAML(small_conv(), 0.1, 2, task_chunk=chunk)
        learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        inputs, targets = conv_task(tasks=6)
        loss = learner.train_on_batch(inputs, targets)
        weights.append([np.array(loss), *learner.get_weights()])
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_summed_loss_sums_over_tasks(float64):
    """With reduction "sum" the outer gradient is the sum over tasks, not the mean."""
    results = []
    for reduction in ("sum", "sum_over_batch_size"):
        keras.utils.set_random_seed(1)
        # The inner loop sums as well, over six support examples.
        learner = tfmeta.MAML(small_conv(), 0.05 / (6 if reduction == "sum" else 1))
        loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
        learner.compile("sgd", loss=loss)
        inputs, targets = conv_task()
        results.append(outer_gradient(learner, inputs, targets))
    for summed, mean in zip(*results, strict=True):
        np.testing.assert_allclose(summed, mean * 12, rtol=1e-8, atol=1e-10)


def test_batch_norm_modes_differ_as_named():
    """Alone or in company: only transductive predictions of a query depend on the others."""
    inputs, _ = conv_task(tasks=1)
    for mode, alone_is_same in (("transductive", False), ("support", True), ("running", True)):
        keras.utils.set_random_seed(1)
        learner = tfmeta.MAML(small_conv(), 0.1, batch_norm=mode)
        learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        together = learner.predict_on_batch(inputs)[0, :1]
        alone = learner.predict_on_batch({**inputs, "query_x": inputs["query_x"][:, :1]})[0]
        assert np.allclose(together, alone, atol=1e-5) == alone_is_same, mode


def test_moving_statistics_move_only_when_used():
    """A transductive learner leaves them; a running one trains them, all tasks through."""
    inputs, targets = conv_task()
    for mode, moves in (("transductive", False), ("support", False), ("running", True)):
        learner = tfmeta.MAML(small_conv(), 0.1, batch_norm=mode)
        learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.train_on_batch(inputs, targets)
        mean = learner.model.layers[1].moving_mean.numpy()
        assert bool(np.any(mean != 0)) == moves, mode


def test_dropout_draws_a_fresh_mask_each_inner_step():
    """Two inner steps with dropout leave other weights than one mask twice would."""
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)]
    )
    learner = tfmeta.MAML(model, 0.1, 2)
    learner.compile("sgd", "mse")
    x, y = tf.ones((1, 8)), tf.ones((1, 1))
    seeds = [v for v in model.non_trainable_variables if "seed" in v.path]
    _, after = learner.adapt_task(x, y, training=True)
    one_step = tfmeta.MAML(model, 0.1, 1)
    one_step.compile("sgd", "mse")
    _, after_one = one_step.adapt_task(x, y, training=True)
    assert len(seeds) == 1
    index = model.non_trainable_variables.index(seeds[0])
    assert not np.array_equal(after[index], after_one[index])
    before = seeds[0].numpy()
    inputs = {"support_x": x[None], "support_y": y[None], "query_x": x[None]}
    learner.train_on_batch(inputs, y[None])
    assert not np.array_equal(before, seeds[0].numpy())


def test_weights_out_of_reach_are_named():
    inputs = keras.Input((3,))
    used, unused = keras.layers.Dense(1, name="used"), keras.layers.Dense(1, name="unused")
    stopped = keras.ops.stop_gradient(unused(inputs))
    model = keras.Model(inputs, keras.layers.Add()([used(inputs), stopped]))
    learner = tfmeta.MAML(model, 0.1)
    learner.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"unused/kernel, unused/bias"):
        adapted = learner.adapt(np.ones((2, 3), np.float32), np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(
        adapted.get_layer("unused").get_weights()[0], unused.get_weights()[0]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_learning_rate": 0}, r"`inner_learning_rate` must be positive.*Received.*0"),
        ({"inner_learning_rate": float("inf")}, r"`inner_learning_rate` must be positive and fin"),
        ({"inner_clip_norm": 0.0}, r"`inner_clip_norm` must be positive.*inner_clip_norm=0.0"),
        ({"inner_learning_rate": [0.1, -0.1]}, r"`inner_learning_rate` must be positive.*-0\.1"),
        ({"inner_learning_rate": []}, r"`inner_learning_rate` must have at least one number"),
        (
            {"inner_learning_rate": [0.1], "inner_steps": 2},
            r"must be at most the number of inner rates.*2 steps, 1 rates",
        ),
        (
            {"learned_rates": "step", "evaluation_steps": 2},
            r"must be at most the number of inner rates.*2 steps, 1 rates",
        ),
        ({"learned_rates": "all"}, r"`learned_rates` must be one of None, 'scalar'.*'all'"),
        ({"joint_weight": -0.5}, r"`joint_weight` must be at least 0.*joint_weight=-0\.5"),
        ({"joint_weight": float("nan")}, r"`joint_weight` must be at least 0 and finite.*nan"),
        ({"inner_steps": 0}, r"`inner_steps` must be at least 1.*inner_steps=0"),
        ({"evaluation_steps": -1}, r"`evaluation_steps` must be at least 1.*-1"),
        ({"batch_norm": "batch"}, r"`batch_norm` must be one of 'transductive'.*'batch'"),
        ({"task_chunk": 0}, r"`task_chunk` must be at least 1.*task_chunk=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfmeta.MAML(small_conv(), **arguments)


def test_arguments_of_another_type():
    with pytest.raises(TypeError, match=r"`inner_learning_rate` must be a number.*'a'"):
        tfmeta.MAML(small_conv(), "a")
    with pytest.raises(TypeError, match=r"`inner_optimizer` must be a rule of tfmeta.*Adam"):
        tfmeta.MAML(small_conv(), inner_optimizer=keras.optimizers.Adam())
    with pytest.raises(TypeError, match=r"SGD, RMSprop or Adam.*inner_optimizer='adamw'"):
        tfmeta.MAML(small_conv(), inner_optimizer="adamw")
    with pytest.raises(TypeError, match=r"`joint_weight` must be a number.*'1'"):
        tfmeta.MAML(small_conv(), joint_weight="1")
    with pytest.raises(TypeError, match=r"`inner_steps` must be an integer.*1\.5"):
        tfmeta.MAML(small_conv(), 0.1, 1.5)


def test_a_support_set_that_is_learnt_to_infinity():
    learner = tfmeta.MAML(tfmeta.models.mlp((3,), 1), 1e38, 3)
    learner.compile("sgd", "mse")
    x, y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    with pytest.raises(ValueError, match=r"must be finite.*smaller inner learning rate"):
        learner.adapt(x, y)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_a_support_loss_that_is_not_finite_is_reported_with_step_and_task(options):
    """Task 1 of three begins with an infinite label; nothing is trained on it."""
    learner = tfmeta.MAML(tfmeta.models.mlp((3,), 1), 0.1, 2)
    learner.compile("sgd", "mse", **options)
    x, y = np.ones((3, 4, 3), np.float32), np.ones((3, 4, 1), np.float32)
    inputs = {"support_x": x, "support_y": y.copy(), "query_x": x}
    inputs["support_y"][1, 2] = np.inf
    before = learner.model.get_weights()
    with pytest.raises(ValueError, match=r"must be finite.*inf in inner step 0 of task 1"):
        learner.fit(tf.data.Dataset.from_tensors((inputs, y)), verbose=0)
    for a, b in zip(before, learner.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # A rate that is too high shows in a later step.
    learner = tfmeta.MAML(tfmeta.models.mlp((3,), 1), 1e38, 3)
    learner.compile("sgd", "mse", **options)
    inputs["support_y"] = y
    with pytest.raises(ValueError, match=r"must be finite.*in inner step 1 of task \d"):
        learner.fit(tf.data.Dataset.from_tensors((inputs, y)), verbose=0)


def test_joint_objective_by_hand(float64):
    """∇[L_Q(φ) + λ L_Q(θ)] = B A (φ−c) + λ A (θ−c) after one step on a quadratic."""
    model = keras.Sequential([keras.Input((DIM,)), Quadratic()])
    model.trainable_variables[0].assign(START)
    learner = tfmeta.MAML(model, 0.1, 1, joint_weight=0.3)
    learner.compile("sgd", loss=half_square)
    zeros = np.zeros((3, 1, DIM))
    inputs = {"support_x": CENTRES, "support_y": zeros, "query_x": CENTRES}
    (gradient,) = outer_gradient(learner, inputs, zeros)
    b = np.eye(DIM) - 0.1 * HESSIAN
    factor = b @ HESSIAN @ b + 0.3 * HESSIAN
    expected = np.mean([factor @ (START - c[0]) for c in CENTRES], axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)


def test_needs_a_loss():
    inputs, _ = conv_task()
    with pytest.raises(ValueError, match=r"needs a loss.*compile"):
        tfmeta.MAML(small_conv()).adapt(inputs["support_x"][0], inputs["support_y"][0])


def test_more_ways_than_outputs():
    """Fewer outputs than ways: said by `fit`, `adapt` and `evaluate`."""
    learner = tfmeta.MAML(small_conv(), 0.1)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = conv_task()
    inputs["support_y"] = inputs["support_y"] + 1
    with pytest.raises(ValueError, match=r"model has 3 outputs, and `ways`.*labels from 1 to 3"):
        learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    for jit_compile in (False, True):
        learner.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
        with pytest.raises(ValueError, match=r"model has 3 outputs, and `ways`.*from 1 to 3"):
            learner.fit(tf.data.Dataset.from_tensors((inputs, targets)), verbose=0)
    # Only the first meta-batch is looked at beforehand.
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    right = {**inputs, "support_y": inputs["support_y"] - 1}
    data = tf.data.Dataset.from_tensors((right, targets)).concatenate(
        tf.data.Dataset.from_tensors((inputs, targets))
    )
    with pytest.raises(ValueError, match=r"`ways` must be at most the number"):
        learner.fit(data, verbose=0)


@keras.saving.register_keras_serializable(package="test")
class Block(keras.layers.Layer):
    """A layer of one's own, with batch normalisation inside."""

    def build(self, input_shape):
        self.norm = keras.layers.BatchNormalization()
        self.norm.build(input_shape)

    def call(self, x, training=None):
        return self.norm(x, training=training)


def nested(middle):
    first = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6), middle])
    return keras.Sequential([keras.Input((5,)), first, keras.layers.Dense(3)])


def vector_task():
    x, q = np.random.default_rng(0).normal(size=(2, 1, 6, 5)).astype("float32")
    y = np.repeat(np.arange(3, dtype=np.int32), 2)[None]
    return {"support_x": x, "support_y": y, "query_x": q}, y


@pytest.mark.parametrize("batch_norm", ["transductive", "support", "running"])
def test_batch_norm_in_a_model_in_the_model(batch_norm):
    inputs, targets = vector_task()
    learner = tfmeta.MAML(nested(keras.layers.BatchNormalization()), 0.1, 2, batch_norm=batch_norm)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.train_on_batch(inputs, targets)
    expected = learner.predict_on_batch(inputs)[0]
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    before = adapted.get_weights()
    np.testing.assert_allclose(adapted.predict(inputs["query_x"][0]), expected, atol=1e-5)
    adapted.trainable = False
    np.testing.assert_allclose(adapted.predict(inputs["query_x"][0]), expected, atol=1e-5)
    for a, b in zip(before, adapted.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_norm_in_a_layer_of_ones_own():
    inputs, _ = vector_task()
    learner = tfmeta.MAML(nested(Block()), 0.1)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    np.testing.assert_allclose(
        adapted.predict(inputs["query_x"][0]), learner.predict_on_batch(inputs)[0], atol=1e-5
    )


def test_a_model_whose_call_takes_no_training_flag():
    class Plain(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dropout, self.last = keras.layers.Dropout(0.5), keras.layers.Dense(3)

        def call(self, x):
            return self.last(self.dropout(x))

    inputs, targets = vector_task()
    learner = tfmeta.MAML(Plain(), 0.1)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.train_on_batch(inputs, targets)
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    np.testing.assert_allclose(
        adapted.predict(inputs["query_x"][0]), learner.predict_on_batch(inputs)[0], atol=1e-5
    )


def test_subclassed_model_adapts_by_either_statistics(tmp_path):
    @keras.saving.register_keras_serializable(package="test")
    class Subclassed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = keras.layers.Dense(6)
            self.norm = keras.layers.BatchNormalization()
            self.last = keras.layers.Dense(3)

        def call(self, x, training=None):
            return self.last(self.norm(self.first(x), training=training))

    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(2, 6, 5)).astype("float32")
    y = np.repeat(np.arange(3, dtype=np.int32), 2)
    learner = tfmeta.MAML(Subclassed(), 0.1, 2, batch_norm="support")
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs = {"support_x": x[None], "support_y": y[None], "query_x": q[None]}
    learner.train_on_batch(inputs, y[None])
    expected = learner.predict_on_batch(inputs)[0]
    np.testing.assert_allclose(learner.adapt(x, y).predict(q, verbose=0), expected, atol=1e-5)

    learner = tfmeta.MAML(Subclassed(), 0.1, 2)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = learner.predict_on_batch(inputs)[0]
    adapted = learner.adapt(x, y)
    np.testing.assert_allclose(adapted.predict(q, verbose=0), expected, atol=1e-5)
    # The batch at hand, in a file too, though the model's class makes an ordinary layer.
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    np.testing.assert_allclose(loaded.predict(q, verbose=0), expected, atol=1e-5)
