"""How each layer of Keras is put into a small model, and which of its arguments take which values.

Everything is by name, so that what Keras adds is missed (`test_layers.py` looks for it) and what
older releases lack does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
from keras import layers

VECTOR, SEQUENCE, IMAGE, VOLUME = (4,), (6, 4), (6, 4, 4), (4, 4, 4, 2)


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Recipe(NamedTuple):
    """How a layer is made and called.

    Attributes:
        shapes: Of an example's inputs; each makes a model of its own.
        needed: The arguments that it cannot do without, or what makes them, as layers are for one
            model.
        values: Of other arguments, values off their defaults; others are in `VALUES`.
        call: `(layer, x) -> y`.
        tokens: How many the inputs may be, if they are integers.
        raw: Nothing is to be learnt before the layer.
        random: Training cannot be repeated.
    """

    shapes: tuple[tuple[int, ...], ...]
    needed: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = _NOTHING
    values: Mapping[str, list[Any]] = _NOTHING
    call: Callable[[Any, Any], Any] = lambda layer, x: layer(x)
    tokens: int | None = None
    raw: bool = False
    random: bool = False


@keras.saving.register_keras_serializable(package="conformance")
def sine(x: Any) -> Any:
    """Return what is no activation of Keras's."""
    return keras.ops.sin(x)


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
    ("Rescaling", "scale"): (
        [[[0.5], [1.0], [2.0], [3.0]]],
        "several axes would meet those of the layout",
    ),
    ("Activation", "activation"): ([sine], "it may do anything"),
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
    return layer([x, layers.Dense(x.shape[-1])(x)])


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
    "UpSampling2D": Recipe(_2D, {}, {"size": [(1, 3)], "interpolation": ["bilinear", "bicubic"]}),
    "Activation": Recipe(_ANY, {"activation": "tanh"}, {"activation": ["softmax"]}),
    "ReLU": Recipe(_ANY, {}, {"max_value": [0.5], "negative_slope": [0.2], "threshold": [0.3]}),
    "LeakyReLU": Recipe(_ANY, {}, {"negative_slope": [0.1]}),
    "ELU": Recipe(_ANY, {}, {"alpha": [0.5]}),
    "Softmax": Recipe(_ANY, {}, {"axis": [-1]}),
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


def _self_attention(layer: Any, x: Any) -> Any:
    return layer(x, x)


def _both(layer: Any, x: Any) -> Any:
    return layer([x, x])


def _embedded(layer: Any, x: Any) -> Any:
    """Learn from whole numbers."""
    return layers.Embedding(8, 2, name="learnt")(layer(x))


def _masked(layer: Any, x: Any) -> Any:
    """Give the mask to a layer that heeds it."""
    return layers.GlobalAveragePooling1D()(layer(x))


def _cell(layer: Any, x: Any) -> Any:
    return layers.RNN(layer)(x)


_POOLS, _3D = ("Average", "Max"), (VOLUME,)
_RATE = {"rate": 0.4}
# TensorFlow, or Keras, can do no other.
_FLOAT = {"dtype": "float32"}
_TOKENS: dict[str, Any] = {"shapes": ((5,),), "tokens": 7}
_RAW: dict[str, Any] = {"shapes": ((6, 6, 3),), "raw": True}

# Of layers without a rule only that the numbers are right.
WITHOUT_A_RULE: dict[str, Recipe] = {
    "ActivityRegularization": Recipe(_1D, {"l1": 0.1, "l2": 0.1}),
    **{f"Adaptive{p}Pooling1D": Recipe(_1D, {"output_size": 4}) for p in _POOLS},
    **{f"Adaptive{p}Pooling2D": Recipe(_2D, {"output_size": 4}) for p in _POOLS},
    **{f"Adaptive{p}Pooling3D": Recipe(_3D, {"output_size": 3, **_FLOAT}) for p in _POOLS},
    "AdditiveAttention": Recipe(_1D, call=_both),
    "AlphaDropout": Recipe(_1D, _RATE, random=True),
    "Attention": Recipe(_1D, call=_both),
    **{f"{p}Pooling3D": Recipe(_3D, {"pool_size": 2, **_FLOAT}) for p in _POOLS},
    **{f"Global{p}Pooling3D": Recipe(_3D) for p in _POOLS},
    "Bidirectional": Recipe(_1D, lambda: {"layer": layers.GRU(2)}),
    "CategoryEncoding": Recipe(
        needed={"num_tokens": 7}, call=lambda layer, x: layers.Dense(3)(layer(x)), **_TOKENS
    ),
    "CenterCrop": Recipe(_2D, {"height": 4, "width": 4}),
    "Conv1DTranspose": Recipe(_1D, _CONV),
    "Conv2DTranspose": Recipe(_2D, _CONV),
    "Conv3D": Recipe(_3D, _CONV),
    "Conv3DTranspose": Recipe(_3D, _CONV),
    "ConvLSTM1D": Recipe(((2, 4, 2),), _CONV),
    "ConvLSTM2D": Recipe(((2, 3, 3, 2),), _CONV),
    "ConvLSTM3D": Recipe(((2, 3, 3, 3, 1),), _CONV),
    "Cropping3D": Recipe(_3D),
    "Discretization": Recipe(
        ((5,),), {"bin_boundaries": [-1.0, 0.0, 1.0]}, call=_embedded, raw=True
    ),
    "Dot": Recipe(_1D, {"axes": 2}, call=_both),
    "EinsumDense": Recipe(_1D, {"equation": "abc,cd->abd", "output_shape": (6, 3)}),
    "GRU": Recipe(_1D, {"units": 2}),
    "GRUCell": Recipe(_1D, {"units": 2}, call=_cell),
    "GroupedQueryAttention": Recipe(
        _1D,
        {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 1},
        call=_self_attention,
    ),
    "HashedCrossing": Recipe(
        needed={"num_bins": 8},
        call=lambda layer, x: _embedded(lambda y: layer((y[:, 0], y[:, 1])), x),
        **_TOKENS,
    ),
    "Hashing": Recipe(needed={"num_bins": 8}, call=_embedded, **_TOKENS),
    "IntegerLookup": Recipe(needed={"vocabulary": [1, 2, 3]}, call=_embedded, **_TOKENS),
    "LSTM": Recipe(_1D, {"units": 2}),
    "LSTMCell": Recipe(_1D, {"units": 2}, call=_cell),
    "Lambda": Recipe(_1D, {"function": sine}),
    "Masking": Recipe(_1D, call=_masked),
    "MultiHeadAttention": Recipe(_1D, {"num_heads": 2, "key_dim": 2}, call=_self_attention),
    "Normalization": Recipe(_1D, {"mean": 0.5, "variance": 2.0}),
    "RMSNormalization": Recipe(_1D),
    "RNN": Recipe(_1D, lambda: {"cell": layers.SimpleRNNCell(2)}),
    "Resizing": Recipe(_2D, {"height": 4, "width": 8, **_FLOAT}),
    "ReversibleEmbedding": Recipe(needed={"input_dim": 7, "output_dim": 3}, **_TOKENS),
    "SimpleRNN": Recipe(_1D, {"units": 2}),
    "SimpleRNNCell": Recipe(_1D, {"units": 2}, call=_cell),
    "SpatialDropout3D": Recipe(_3D, _RATE, random=True),
    # What it writes to its kernel in training is held by tests/algorithms/test_layer_writes.py.
    "SpectralNormalization": Recipe(_1D, lambda: {"layer": layers.Dense(3)}, random=True),
    "StackedRNNCells": Recipe(
        _1D, lambda: {"cells": [layers.SimpleRNNCell(2), layers.SimpleRNNCell(2)]}, call=_cell
    ),
    "TimeDistributed": Recipe(_1D, lambda: {"layer": layers.Dense(3)}),
    "UnitNormalization": Recipe(_1D),
    "UpSampling3D": Recipe(_3D),
    "ZeroPadding3D": Recipe(_3D),
    # Of what changes images at random: that evaluation leaves them alone.
    **{
        f"Random{what}": Recipe(needed=needed, random=True, **_RAW)
        for what, needed in {
            "Brightness": {"factor": 0.2},
            "ColorDegeneration": {"factor": 0.2},
            "ColorJitter": {"hue_factor": 0.2},
            "Contrast": {"factor": 0.2},
            "ElasticTransform": {},
            "Erasing": {},
            "Flip": {},
            "GaussianBlur": {},
            "Grayscale": {},
            "Hue": {"factor": 0.2},
            "Invert": {},
            "Perspective": {},
            "Posterization": {"factor": 4},
            "Rotation": {"factor": 0.2, **_FLOAT},
            "Saturation": {"factor": 0.2},
            "Sharpness": {"factor": 0.2},
            "Shear": {"x_factor": (0.0, 0.2)},
            "Translation": {"height_factor": 0.2, "width_factor": 0.2},
            "Zoom": {"height_factor": 0.2},
        }.items()
    },
    "AugMix": Recipe(needed=_FLOAT, random=True, **_RAW),
    "CutMix": Recipe(random=True, **_RAW),
    "MixUp": Recipe(random=True, **_RAW),
    "RandAugment": Recipe(needed=_FLOAT, random=True, **_RAW),
    "Solarization": Recipe(random=True, **_RAW),
    "AutoContrast": Recipe(**_RAW),
    "ContrastLimitedAdaptiveHistogramEqualization": Recipe(**_RAW),
    "STFTSpectrogram": Recipe(
        ((16, 1),), {"frame_length": 4, "frame_step": 4, "window": None}, raw=True
    ),
    "MelSpectrogram": Recipe(
        ((64,),), {"fft_length": 16, "sequence_stride": 8, "num_mel_bins": 4, **_FLOAT}, raw=True
    ),
}

# What no learner can be tried with, and why.
NOT_LAYERS_OF_A_MODEL: dict[str, str] = {
    "Equalization": "is part of a cycle in every model of Keras's",
    "FeatureSpace": "is no layer of a model: it takes a dictionary of raw columns",
    "FlaxLayer": "calls JAX, which is another backend",
    "InputLayer": "is made by every `keras.Input`",
    "InputSpec": "is no layer",
    "JaxLayer": "calls JAX, which is another backend",
    "Layer": "has no call of its own",
    "MaxNumBoundingBoxes": "takes boxes, which learners do not",
    "Pipeline": "runs layers one after another; they are tried by themselves",
    "RandomCrop": "returns whole images, not those of the size that it has said",
    "StringLookup": "takes strings, which tests/algorithms hold",
    "TFSMLayer": "takes a SavedModel, whose gradients are those that it was saved with",
    "TextVectorization": "takes strings, which tests/algorithms hold",
    "TorchModuleWrapper": "calls PyTorch, which is another backend",
    "Wrapper": "has no call of its own",
}
