"""The backbones: shapes, sizes and errors."""

import numpy as np
import pytest

import tfmeta


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
