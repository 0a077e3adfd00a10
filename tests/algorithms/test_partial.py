"""Inner loops that change a part of the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml import assert_directional_derivatives, outer_gradient, vector_task
from tests.rows import rows


def network():
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, "tanh", name="body"),
            keras.layers.Dense(4, "tanh", name="neck"),
            keras.layers.Dense(3, name="head"),
        ]
    )


@keras.saving.register_keras_serializable(package="test")
def is_bias(variable):
    return variable.name == "bias"


CHOICES = {
    "ANIL": (tfmeta.ANIL, {}, ["head/kernel", "head/bias"]),
    "BOIL": (tfmeta.BOIL, {}, ["body/kernel", "body/bias", "neck/kernel", "neck/bias"]),
    "a layer": (tfmeta.MAML, {"adapt_layers": "neck"}, ["neck/kernel", "neck/bias"]),
    "a path": (
        tfmeta.MAML,
        {"adapt_layers": ["body/bias", "head"]},
        ["body/bias", "head/kernel", "head/bias"],
    ),
    "a function": (tfmeta.MAML, {"adapt_layers": is_bias}, ["body/bias", "neck/bias", "head/bias"]),
    "all": (
        tfmeta.MAML,
        {},
        [f"{layer}/{kind}" for layer in ("body", "neck", "head") for kind in ("kernel", "bias")],
    ),
}


@pytest.fixture(params=rows(CHOICES, {"BOIL", "a path", "a function", "all"}))
def choice(request):
    return CHOICES[request.param]


def compiled(make, options):
    keras.utils.set_random_seed(1)
    learner = make(network(), 0.1, 3, **options)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return learner


def test_only_the_chosen_weights_adapt(choice, tmp_path):
    make, options, expected = choice
    learner = compiled(make, options)
    inputs, _ = vector_task()
    learner(inputs)
    learner.save(tmp_path / "learner.keras")
    for made in (learner, keras.models.load_model(tmp_path / "learner.keras")):
        adapted = made.adapt(inputs["support_x"][0], inputs["support_y"][0])
        moved = [
            "/".join(v.path.split("/")[-2:])
            for v, w in zip(adapted.trainable_variables, learner.model.get_weights(), strict=True)
            if not np.array_equal(v.numpy(), w)
        ]
        assert moved == expected


def test_outer_gradient_by_finite_differences(float64, choice):
    """K = 3: every weight has its gradient, adapted or not."""
    make, options, _ = choice
    learner = compiled(make, options)
    inputs, targets = vector_task()
    inputs = {k: v.astype(float) if v.dtype == np.float32 else v for k, v in inputs.items()}
    gradients = outer_gradient(learner, inputs, targets)

    @tf.function
    def outer_loss():
        return learner.compute_loss(y=targets, y_pred=learner(inputs, training=True))

    assert all(np.any(g) for g in gradients)
    assert_directional_derivatives(learner.trainable_variables, gradients, outer_loss)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "hed",
            r"`adapt_layers` must name layers.*Received: 'hed'; the layers are body, head, neck",
        ),
        (["head", "tail"], r"Received: 'tail'"),
        ([], r"`adapt_layers` must choose at least one weight.*adapt_layers=\[\]"),
        (lambda variable: False, r"`adapt_layers` must choose at least one weight"),
    ],
)
def test_choices_of_nothing(part, message):
    learner = compiled(tfmeta.MAML, {"adapt_layers": part})
    with pytest.raises(ValueError, match=message):
        learner(vector_task()[0])


@pytest.mark.parametrize("make", [tfmeta.ANIL, tfmeta.BOIL])
def test_a_network_without_a_body(make):
    one = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="only")])
    with pytest.raises(ValueError, match=r"at least two layers.*\['only'\]"):
        make(one)
