"""How each layer of Keras is put into a small model, and which of its arguments take which values.

Everything is by name, so that what Keras adds is missed (`test_layers.py` looks for it) and what
older releases lack does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import layers

VECTOR, SEQUENCE, IMAGE, VOLUME = (4,), (6, 4), (6, 6, 4), (4, 4, 4, 2)


class Recipe(NamedTuple):
    """How a layer is made and called.

    Attributes:
        shapes: Of an example's inputs; each makes a model of its own.
        needed: The arguments that it cannot do without.
        values: Of other arguments, values off their defaults; others are in `VALUES`.
        call: `(layer, x) -> y`.
        tokens: How many the inputs may be, if they are integers.
        raw: Nothing is to be learnt before the layer.
        random: Training cannot be repeated.
    """

    shapes: tuple[tuple[int, ...], ...]
    needed: dict[str, Any] = {}
    values: dict[str, list[Any]] = {}
    call: Callable[[Any, Any], Any] = lambda layer, x: layer(x)
    tokens: int | None = None
    raw: bool = False
    random: bool = False


# What an argument of any layer is set to, unless the layer's recipe says otherwise.
VALUES: dict[str, list[Any]] = {
    "activation": ["tanh"],
    "activity_regularizer": ["l2"],
    "autocast": [False],
    "center": [False],
    "data_format": ["channels_first"],
    "depth_multiplier": [2],
    "dilation_rate": [2],
    "dtype": ["float32"],
    "epsilon": [0.1],
    "groups": [2],
    "keepdims": [True],
    "lora_alpha": [2],
    "lora_rank": [1],
    "name": ["named"],
    "padding": ["same"],
    "scale": [False],
    "seed": [3],
    "strides": [2],
    "trainable": [False],
    "use_bias": [False],
}
# Only together with another argument.
TOGETHER: dict[str, dict[str, Any]] = {"lora_alpha": {"lora_rank": 1}}
# By the ends of their names.
ENDINGS: dict[str, list[Any]] = {
    "_initializer": ["random_uniform"],
    "_regularizer": ["l2"],
    "_constraint": ["unit_norm"],
}
# Arguments whose values off the default are computed in turn, and why.
IN_TURN: dict[str, str] = {
    "activity_regularizer": "packed models have no regularisation",
    "*_regularizer": "packed models have no regularisation",
    "*_constraint": "packed weights are not projected",
    "data_format": "the axis of tasks is beside the channels, which come last",
    "lora_rank": "the weights are products",
    "lora_alpha": "the weights are products",
    "mask_zero": "masks reach no rule",
    "noise_shape": "it is that of one task's activations",
    "quantization_config": "weights are not quantised",
    "renorm": "the corrections depend on the moving statistics",
    "renorm_clipping": "the corrections depend on the moving statistics",
    "renorm_momentum": "the corrections depend on the moving statistics",
    "rms_scaling": "Keras no longer documents it",
    "synchronized": "replicas do not speak with each other in a rule",
}
# Values of arguments that are computed in turn, of layers where others of them are packed.
VALUES_IN_TURN: dict[tuple[str, str], tuple[list[Any], str]] = {
    ("BatchNormalization", "axis"): ([1], "only channels that come last lie side by side"),
    ("GroupNormalization", "axis"): ([1], "only channels that come last lie side by side"),
    ("LayerNormalization", "axis"): ([1, [1, 2]], "several axes would be those of the layout"),
    ("Softmax", "axis"): ([1, [1, 2]], "several axes would be those of the layout"),
    ("Rescaling", "scale"): ([[[0.5], [2.0]] * 3], "several axes would meet those of the layout"),
    ("Activation", "activation"): ([keras.ops.sin], "it may do anything"),
}
# What neither Keras nor its TensorFlow backend can do, or what does not reach a learner.
NOT_TRIED: dict[tuple[str, str], str] = {
    ("Embedding", "autocast"): "the layer sets it itself",
    ("Embedding", "quantization_config"): "has an effect on a layer that is quantised only",
    ("Dense", "quantization_config"): "has an effect on a layer that is quantised only",
    ("Flatten", "data_format"): "is tried with the layouts of test_packed.py",
    ("LayerNormalization", "rms_scaling"): "a deprecated argument that warns",
}

_CONV = {"filters": 2, "kernel_size": 2}
_1D, _2D = (SEQUENCE,), (IMAGE,)
_ANY = (VECTOR, SEQUENCE, IMAGE)
_POOL = {"pool_size": [3]}


def _two(layer: Any, x: Any) -> Any:
    return layer([x, layers.Dense(x.shape[-1], name="second")(x)])


def _wide(layer: Any, x: Any) -> Any:
    """Merge inputs one of which is spread over the axes of the other."""
    spread = x[:, :1] if len(x.shape) > 2 else x
    return layer([x, spread])


PACKED: dict[str, Recipe] = {
    "Dense": Recipe(_ANY, {"units": 3}),
    "Conv1D": Recipe(_1D, _CONV, {"padding": ["same", "causal"]}),
    "Conv2D": Recipe(_2D, _CONV, {"strides": [2, (2, 1)], "kernel_size": [(3, 1)]}),
    "DepthwiseConv1D": Recipe(_1D, {"kernel_size": 2}),
    "DepthwiseConv2D": Recipe(_2D, {"kernel_size": 2}),
    "SeparableConv1D": Recipe(_1D, _CONV),
    "SeparableConv2D": Recipe(_2D, _CONV),
    "MaxPooling1D": Recipe(_1D, {}, _POOL),
    "MaxPooling2D": Recipe(_2D, {}, {"pool_size": [3, (1, 2)]}),
    "AveragePooling1D": Recipe(_1D, {"pool_size": 2}),
    "AveragePooling2D": Recipe(_2D, {"pool_size": 2}),
    "GlobalMaxPooling1D": Recipe(_1D),
    "GlobalMaxPooling2D": Recipe(_2D),
    "GlobalAveragePooling1D": Recipe(_1D),
    "GlobalAveragePooling2D": Recipe(_2D),
    "ZeroPadding1D": Recipe(_1D, {}, {"padding": [2, (0, 1)]}),
    "ZeroPadding2D": Recipe(_2D, {}, {"padding": [2, (0, 1), ((0, 1), (2, 0))]}),
    "Cropping1D": Recipe(_1D, {}, {"cropping": [2, (0, 1)]}),
    "Cropping2D": Recipe(_2D, {}, {"cropping": [1, (0, 1), ((0, 1), (2, 0))]}),
    "UpSampling1D": Recipe(_1D, {}, {"size": [3]}),
    "UpSampling2D": Recipe(
        _2D, {}, {"size": [(1, 3)], "interpolation": ["bilinear", "bicubic", "lanczos3"]}
    ),
    "Activation": Recipe(_ANY, {"activation": "tanh"}, {"activation": ["softmax"]}),
    "ReLU": Recipe(
        _ANY, {}, {"max_value": [0.5], "negative_slope": [0.2], "threshold": [0.3]}
    ),
    "LeakyReLU": Recipe(_ANY, {}, {"negative_slope": [0.1]}),
    "ELU": Recipe(_ANY, {}, {"alpha": [0.5]}),
    "Softmax": Recipe(_ANY),
    "PReLU": Recipe(_ANY, {}, {"shared_axes": [[1]]}),
    "Rescaling": Recipe(_ANY, {"scale": 2.0}, {"scale": [[1.0, 2.0, 3.0, 4.0]], "offset": [0.5]}),
    "Dropout": Recipe(_ANY, {"rate": 0.4}, {"noise_shape": [(None, 1)]}, random=True),
    "GaussianNoise": Recipe(_ANY, {"stddev": 0.4}, random=True),
    "GaussianDropout": Recipe(_ANY, {"rate": 0.4}, random=True),
    "SpatialDropout1D": Recipe(_1D, {"rate": 0.4}, random=True),
    "SpatialDropout2D": Recipe(_2D, {"rate": 0.4}, random=True),
    "BatchNormalization": Recipe(
        _ANY,
        {},
        {
            "axis": [-1],
            "momentum": [0.5],
            "renorm": [True],
            "renorm_clipping": [{"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}],
            "renorm_momentum": [0.5],
            "synchronized": [True],
        },
    ),
    "LayerNormalization": Recipe(_ANY, {}, {"axis": [-1]}),
    "GroupNormalization": Recipe(_ANY, {"groups": 2}, {"groups": [4, -1], "axis": [-1]}),
    "Embedding": Recipe(
        ((5,), (2, 3)),
        {"input_dim": 7, "output_dim": 4},
        {"mask_zero": [True], "weights": [None]},
        tokens=7,
    ),
    "Flatten": Recipe(_ANY),
    "Reshape": Recipe(((4, 6), (4, 3, 2)), {"target_shape": (12, 2)}, {"target_shape": [(2, -1)]}),
    "Permute": Recipe(((4, 3, 2),), {"dims": (2, 1, 3)}, {"dims": [(3, 1, 2)]}),
    "RepeatVector": Recipe((VECTOR,), {"n": 2}),
    **{
        name: Recipe(_ANY, call=_two)
        for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
    },
    "Concatenate": Recipe(_ANY, {}, {"axis": [1]}, call=_two),
    "Identity": Recipe(_ANY),
}
