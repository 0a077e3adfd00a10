"""The network of a run: an encoder, untrained or of a file, and what a learner needs behind it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import keras

from tfmeta.digests import sha256
from tfmeta.functional import batch_norm_layers
from tfmeta.keras_files import read_model
from tfmeta.layers import Context
from tfmeta.learner_table import LEARNERS
from tfmeta.meta_learner import MetaLearner
from tfmeta.models import BACKBONES
from tfmeta.runs import Settings

# As many context parameters as CAVIA's paper has for images.
_CONTEXT = 100


class Network(NamedTuple):
    """A network, and the part of it that an ordinary classifier can train beforehand.

    Attributes:
        encoder: `[n, height, width, channels]` → `[n, d]`.
        whole: What the learner takes: the encoder itself, or with an output for each class.
    """

    encoder: keras.Model
    whole: keras.Model

    def freeze(self) -> None:
        """Leave the weights of the encoder as they are, from now on."""
        for layer in self.encoder.layers:
            layer.trainable = False


def new_network(settings: Settings, example_shape: tuple[int, ...]) -> Network:
    """Return the network that a run begins with, for images of this shape; nothing is frozen yet.

    Raises:
        ValueError: If the images are too small for it, the file of an encoder is damaged or another
            one than it was, or the encoder takes other images or gives no vectors.
    """
    keras.utils.set_random_seed(settings.seed)
    if settings.network in BACKBONES:
        own = {"downsample": settings.downsample} if settings.network == "conv4" else {}
        encoder = BACKBONES[settings.network](example_shape, filters=settings.filters, **own)
    else:
        encoder = read(settings.network)
        found = sha256(Path(settings.network))
        if settings.network_sha256 not in (None, found):
            raise ValueError(
                f"'{settings.network}' must be the file that the run was started with. Received: "
                f"one with the SHA-256 {found}, not {settings.network_sha256}"
            )
        check_takes(encoder, settings.network, example_shape)
        check_gives(encoder, settings)
    if settings.batch_norm_momentum is not None:
        norms = batch_norm_layers(encoder)
        if not norms:
            raise ValueError(
                "`batch_norm_momentum` is for a network with batch normalisation that is trained. "
                f"Received: batch_norm_momentum={settings.batch_norm_momentum} and "
                f"{settings.network!r}, which has none"
            )
        for layer in norms:
            layer.momentum = settings.batch_norm_momentum
    if not LEARNERS[settings.algorithm].fixed_ways:
        return Network(encoder, encoder)
    return Network(encoder, _with_outputs(encoder, settings))


def read(path: str | os.PathLike[str]) -> keras.Model:
    """Return an encoder that Keras saved; of a learner that takes one, its encoder.

    Raises:
        ValueError: If it is damaged, asks for other code than Keras's and this package's, or is a
            learner whose model gives classes and no vectors.
    """
    model = read_model(path)
    if isinstance(model, MetaLearner):
        if not model.gives_logits:
            raise ValueError(
                f"'{path}' must be an encoder, or a learner on one. Received: a "
                f"{type(model).__name__}, whose model has outputs for classes and gives no vectors"
            )
        model = model.model
    return model


def image_shape(encoder: keras.Model, path: str) -> tuple[int, int, int]:
    """Return height, width and channels of the images that an encoder takes.

    Raises:
        ValueError: If it takes something else, or images of any size.
    """
    shape = getattr(encoder, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            f"'{path}' must take images [n, height, width, channels] of one size. "
            f"Received: a model {encoder.name!r} that takes {shape}"
        )
    height, width, channels = shape[1:]
    return height, width, channels


def check_takes(encoder: keras.Model, path: str, example_shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless an encoder takes images of this shape."""
    takes = image_shape(encoder, path)
    if takes != example_shape:
        raise ValueError(
            f"'{path}' must take the data's images, of shape {example_shape}. "
            f"Received: a model for {takes}"
        )


def check_gives(encoder: keras.Model, settings: Settings) -> None:
    """Raise a `ValueError` unless an encoder gives what the learner takes."""
    gives = getattr(encoder, "output_shape", None)
    maps = settings.algorithm == "relation-network"
    if not isinstance(gives, tuple) or len(gives) not in ((2, 4) if maps else (2,)):
        raise ValueError(
            f"'{settings.network}' must give one vector [n, d] for each image. Received: a model "
            f"{encoder.name!r} that gives {gives}; one with keras.layers.GlobalAveragePooling2D "
            "behind it does"
        )


def _with_outputs(encoder: keras.Model, settings: Settings) -> keras.Model:
    """Return a model with the encoder's layers and an output for each class behind them."""
    made_here = settings.network in BACKBONES
    # Of a Sequential that was loaded, `input` and `output` are not there.
    (inputs,), (x,) = encoder.inputs, encoder.outputs
    if settings.algorithm == "cavia":
        # A head alone would turn context into a shift of the logits, the same for all images.
        x = Context(_CONTEXT, **_named("context", encoder, made_here))(x)
        hidden = _named("hidden", encoder, made_here)
        x = keras.layers.Dense(encoder.output_shape[-1], "relu", **hidden)(x)
    head = keras.layers.Dense(settings.ways, **_named("classes", encoder, made_here))
    return keras.Model(inputs, head(x), name=encoder.name)


def _named(name: str, encoder: keras.Model, made_here: bool) -> dict[str, Any]:
    """Return a name that no layer of a file's has; Keras names the layers of what is made here."""
    if made_here:
        return {}
    while any(layer.name == name for layer in encoder.layers):
        name += "_"
    return {"name": name}
