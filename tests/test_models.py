"""The backbones: shapes, sizes and errors."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.test_packed import compare, in_precision, random_weights
from tfmeta.functional import functional_call
from tfmeta.models import BACKBONES
from tfmeta.packed import packed_call, spread_weights, task_axes, tried

# The smallest images and few filters: what is looked at does not depend on either.
SMALL = {
    "conv4": lambda outputs=None: tfmeta.models.conv4((16, 16, 3), outputs, (2, 3, 4, 5)),
    "resnet12": lambda outputs=None: tfmeta.models.resnet12(
        (16, 16, 3), outputs, 2, drop_rate=0.1, block_size=2
    ),
    "resnet18": lambda outputs=None: tfmeta.models.resnet18((8, 8, 3), outputs, 2),
    "wrn28_10": lambda outputs=None: tfmeta.models.wrn28_10((8, 8, 3), outputs, 2, dropout=0.1),
}


@pytest.mark.parametrize(
    ("shape", "downsample", "features"),
    [((28, 28, 1), "pool", 64), ((28, 28, 1), "stride", 256), ((84, 84, 3), "pool", 1600)],
)
def test_conv4_features(shape, downsample, features):
    encoder = tfmeta.models.conv4(shape, downsample=downsample)
    assert encoder.output_shape == (None, features)
    head = tfmeta.models.conv4(shape, 5, downsample=downsample)
    assert head.count_params() == encoder.count_params() + 5 * (features + 1)
    assert head(np.zeros((2, *shape))).shape == (2, 5)


def test_conv4_follows_the_weights_within_short_trainings():
    norms = [x for x in tfmeta.models.conv4((28, 28, 1)).layers if hasattr(x, "moving_mean")]
    assert [norm.momentum for norm in norms] == [0.9] * 4


def convolution(inputs, filters, size=3):
    return size * size * inputs * filters


def norm(channels):
    return 4 * channels  # scale, offset, moving mean and variance


def of_conv4(widths):
    pairs = itertools.pairwise((3, *widths))
    return sum(convolution(a, b) + b + norm(b) for a, b in pairs)


def of_resnet12(widths):
    return sum(
        convolution(a, b) + 2 * convolution(b, b) + convolution(a, b, 1) + 4 * norm(b)
        for a, b in itertools.pairwise((3, *widths))
    )


def of_resnet18(widths):
    total = convolution(3, widths[0]) + norm(widths[0])
    for a, b in itertools.pairwise((widths[0], *widths)):
        shortcut = convolution(a, b, 1) + norm(b) if a != b else 0
        total += convolution(a, b) + 3 * convolution(b, b) + 4 * norm(b) + shortcut
    return total


def of_wrn28_10(widths):
    total = convolution(3, 16) + norm(widths[-1])
    for a, b in itertools.pairwise((16, *widths)):
        # Four blocks: the first norm of the first is of what comes in.
        total += convolution(a, b) + 7 * convolution(b, b) + convolution(a, b, 1)
        total += norm(a) + 7 * norm(b)
    return total


@pytest.mark.parametrize(
    ("name", "formula", "widths", "published"),
    [
        # "Conv4", in the same comparison: 0.1 million.
        ("conv4", of_conv4, (64,) * 4, 0.1),
        # Tian et al. 2020, who compare networks: 12.4 million.
        ("resnet12", of_resnet12, (64, 160, 320, 640), 12.4),
        # With this stem and 10 outputs 11.17 million, as the networks for CIFAR-10 are counted.
        ("resnet18", of_resnet18, (64, 128, 256, 512), 11.2),
        # Zagoruyko and Komodakis 2016, table 4: 36.5 million.
        ("wrn28_10", of_wrn28_10, (160, 320, 640), 36.5),
    ],
)
def test_parameters_are_as_many_as_published(name, formula, widths, published):
    encoder = BACKBONES[name]((32, 32, 3))
    assert encoder.count_params() == formula(widths)
    trained = sum(np.prod(w.shape) for w in encoder.trainable_weights)
    assert abs(trained / 1e6 - published) <= 0.05
    assert encoder.output_shape[1:] == ((256,) if name == "conv4" else (widths[-1],))
    few = tuple(range(2, 2 + len(widths)))
    assert BACKBONES[name]((32, 32, 3), filters=few).count_params() == formula(few)


@pytest.mark.parametrize("name", SMALL)
def test_a_head_is_all_that_outputs_add(name):
    encoder, classifier = SMALL[name](), SMALL[name](5)
    assert encoder.name == name
    (features,) = encoder.output_shape[1:]
    assert classifier.count_params() == encoder.count_params() + 5 * (features + 1)
    images = np.random.default_rng(0).random((3, *encoder.input_shape[1:]), np.float32)
    # In evaluation an example's outputs do not depend on those beside it.
    np.testing.assert_allclose(classifier(images)[:1], classifier(images[:1]), atol=1e-5)
    # Layers of random numbers are off there, and on in training.
    same = np.array_equal(encoder(images, training=True), encoder(images, training=True))
    assert same == (name in ("conv4", "resnet18"))


@pytest.mark.parametrize("name", SMALL)
def test_every_layer_has_a_packed_rule(name):
    model = SMALL[name](5)
    assert tried(model, model.inputs[0]).obstacle is None


def test_a_learner_of_a_residual_network_packs():
    learner = tfmeta.MAML(SMALL["resnet12"](2), 0.1, 1, task_axis="packed")
    learner.build(
        {"support_x": (2, 2, 16, 16, 3), "support_y": (2, 2), "query_x": (2, 2, 16, 16, 3)}
    )
    assert learner.why_not_packed() is None


# Without layers that draw numbers.
STILL = {
    "conv4": lambda: tfmeta.models.conv4((16, 16, 1), 2, (2, 3, 4, 5)),
    "resnet12": lambda: tfmeta.models.resnet12((16, 16, 1), 2, 2),
    "resnet18": lambda: tfmeta.models.resnet18((8, 8, 1), 2, 2),
    "wrn28_10": lambda: tfmeta.models.wrn28_10((8, 8, 1), 2, 2),
}


@pytest.mark.parametrize(
    "name",
    [
        "conv4",
        "resnet12",
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("wrn28_10", marks=pytest.mark.slow),
    ],
)
def test_packed_is_in_turn(name):
    model = in_precision(STILL[name])("float64")
    rng = np.random.default_rng(0)
    params = [[tf.constant(w) for w in task] for task in random_weights(model, rng, 2)]
    x = tf.constant(rng.normal(size=(2, 6, *model.input_shape[1:])))
    state = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]
    axes = task_axes(model)
    together = [
        tf.stack(task, axes[id(v)])
        for v, task in zip(model.trainable_variables, zip(*params, strict=True), strict=True)
    ]
    _, packed_state = spread_weights(model, params[0], state, 2)
    how = {"training": True, "statistics": "training"}
    packed = packed_call(model, together, packed_state, x, **how)
    for t in range(2):
        alone = functional_call(model, params[t], state, x[t], **how)
        np.testing.assert_allclose(packed.outputs[t], alone.outputs, rtol=1e-9, atol=1e-9)
        for v, a, b in zip(model.non_trainable_variables, packed.state, alone.state, strict=True):
            ours = tf.gather(a, t, axis=axes[id(v)])
            np.testing.assert_allclose(ours, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", STILL)
def test_packed_is_in_turn_with_two_derivatives(name):
    model = STILL[name]()
    compare(in_precision(STILL[name]), model.input_shape[1:], 2, 8)


def test_dropout_of_squares_is_where_it_was_published():
    model = tfmeta.models.resnet12((32, 32, 3), filters=2, drop_rate=0.1)
    names = [type(layer).__name__ for layer in model.layers]
    assert names.count("DropBlock") == 2
    # Behind the pools of the last two blocks.
    pools = [i for i, name in enumerate(names) if name == "MaxPooling2D"]
    assert [names[i + 1] for i in pools[2:]] == ["DropBlock"] * 2
    plain = [
        type(layer).__name__ for layer in tfmeta.models.resnet12((32, 32, 3), filters=2).layers
    ]
    assert "DropBlock" not in plain


@pytest.mark.parametrize("name", BACKBONES)
def test_bad_arguments_of_every_backbone(name):
    make = BACKBONES[name]
    for arguments, message in (
        (((28, 28),), r"`input_shape` must be \(height, width, channels\)"),
        (((32, 32, 0),), r"`input_shape` must be at least 1.*input_shape=0"),
        (((32, 32, 3), 0), r"`outputs` must be at least 1"),
        (((32, 32, 3), 5, 0), r"`filters` must be at least 1"),
        (((32, 32, 3), 5, (4, 4)), r"`filters` must be a number, or one for each of [34] blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*arguments)
    with pytest.raises(TypeError, match=r"`filters` must be an integer.*2\.5"):
        make((32, 32, 3), 5, 2.5)


def test_four_halvings_need_sixteen_places():
    with pytest.raises(ValueError, match=r"`input_shape` must be at least 16×16.*\(15, 32, 3\)"):
        tfmeta.models.resnet12((15, 32, 3))


def test_a_saved_backbone_is_the_same(tmp_path):
    model = SMALL["resnet12"](2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_mlp_is_the_sinusoid_regressor():
    model = tfmeta.models.mlp((1,), 1)
    assert model.count_params() == 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert tfmeta.models.mlp((2, 3), 4, units=(5,)).output_shape == (None, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((28, 28), 5), r"`input_shape` must be \(height, width, channels\)"),
        (((28, 28, 1), 5, 64, "max"), r"`downsample` must be 'pool' or 'stride'.*'max'"),
        (((12, 12, 1), 5), r"`input_shape` must be at least 16×16"),
        (((28, 28, 1), 0), r"`outputs` must be at least 1"),
        (((28, 28, 1), 5, 0), r"`filters` must be at least 1"),
    ],
)
def test_conv4_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfmeta.models.conv4(*arguments)


def test_mlp_bad_arguments():
    with pytest.raises(ValueError, match=r"`units` must be at least 1.*units=0"):
        tfmeta.models.mlp((1,), 1, (40, 0))
