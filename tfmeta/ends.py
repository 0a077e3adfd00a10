"""What stands at a model's ends: the layers that read its inputs, and those that make its outputs.

A model within a model is looked into, and layers that move numbers without changing them are
looked through. Of a model with a `call` of its own nothing can be said.
"""

from __future__ import annotations

from typing import Any

import keras

from tfmeta.foreign.of_keras import graph_of, maker_of, nodes_of

_MOVING = (
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
)


def readers(model: keras.Model) -> list[list[Any]] | None:
    """Return for each input of `model` the layers that read it first; `None` if unknown."""
    graph = _graph(model)
    if graph is not None:
        return [_readers_of(graph, x) for x in keras.tree.flatten(graph.inputs)]
    if isinstance(model, keras.Sequential) and model.layers:
        # It has no graph before it is built.
        for layer in model.layers:
            if not isinstance(layer, _MOVING):
                inner = readers(layer) if isinstance(layer, keras.Model) else [[layer]]
                return inner or [[layer]]
    return None


def makers(model: keras.Model) -> list[Any]:
    """Return for each output of `model` the layer that makes it, or `None` if it is unknown."""
    graph = _graph(model)
    if graph is not None:
        return [_maker_of(x) for x in keras.tree.flatten(graph.outputs)]
    if isinstance(model, keras.Sequential):
        for layer in reversed(model.layers):
            if not _changes_nothing(layer):
                return makers(layer) if isinstance(layer, keras.Model) else [layer]
    return [None]


def kind_of_output(layer: keras.Layer) -> str | None:
    """Return `"logits"` or `"probabilities"` for what a layer makes, or `None` if it is unknown."""
    if type(layer) is keras.layers.Softmax:
        return "probabilities"
    # Layers of one's own may do anything with their activation, and recurrent ones do.
    if type(layer) not in _ACTIVATED:
        return None
    if layer.activation in (keras.activations.softmax, keras.activations.sigmoid):
        return "probabilities"
    return "logits" if layer.activation is keras.activations.linear else None


_ACTIVATED = tuple(
    getattr(keras.layers, name)
    for name in dir(keras.layers)
    if name in ("Activation", "Dense", "EinsumDense") or ("Conv" in name and "LSTM" not in name)
)


def _graph(model: keras.Model) -> Any:
    """Return the graph of a functional or sequential model, if it has one that is all it does."""
    graph = graph_of(model)
    plain = graph is not None and type(graph).call.__module__.startswith("keras.")
    return graph if plain else None


def _changes_nothing(layer: keras.Layer) -> bool:
    linear = type(layer) is keras.layers.Activation and (
        layer.activation is keras.activations.linear
    )
    return linear or isinstance(layer, _MOVING)


def _readers_of(graph: Any, tensor: Any) -> list[Any]:
    found = []
    for node in nodes_of(graph):
        for place, given in enumerate(node.input_tensors):
            if given is not tensor:
                continue
            reader = node.operation
            inner = readers(reader) if isinstance(reader, keras.Model) else None
            if isinstance(reader, _MOVING):
                found += _readers_of(graph, node.outputs[0])
            elif inner is not None and place < len(inner):
                found += inner[place]
            else:
                found.append(reader)
    return found


def _maker_of(tensor: Any) -> Any:
    maker, given, place = maker_of(tensor)
    if _changes_nothing(maker):
        return _maker_of(given[0])
    inner = makers(maker) if isinstance(maker, keras.Model) else [maker]
    return inner[place] if place < len(inner) else None
