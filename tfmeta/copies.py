"""Copies of models, made object by object, and models put back as they were.

Keras copies by configuration, which not every model has: lambdas, layers that were never
registered, frozen variables, vocabularies and whatever was set after a layer was made don't stand
in one. Here a model is what its Python objects are: those that can change are made anew, each once,
and what never changes is shared.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

M = TypeVar("M", bound=keras.Model)

# Their objects belong to no model: tensors, tables, data types, locks, signatures, ...
_OTHERS = {"tensorflow", "numpy", *sys.stdlib_module_names}
_CONTAINERS = (list, dict, set)
_TRACED = tf.types.experimental.PolymorphicFunction  # what tf.function gives
_FIXED = (tuple, frozenset, types.FunctionType, types.MethodType, functools.partial, _TRACED)

# Layers know all calls of theirs, those in other models too, which are not to be copied.
_CALLS = ("_inbound_nodes", "_outbound_nodes")
# Keras finds these by what `id` gives, alone or at the beginning of a string.
_BY_ID = ("stored_ids", "_loss_ids", "_nodes")
# What `compile` adds to a model; a copy is not compiled.
_COMPILED = {
    "optimizer",
    "_loss_tracker",
    "_compile_metrics",
    "_compile_loss",
    "_compile_config",
    "_compiled_trainable_state",
    "train_function",
    "test_function",
    "predict_function",
}
_NO_COMPILATION = ("_lock", "_compute_loss_has_training_arg")
_GONE = object()
# The class of objects by which TensorFlow finds what it saves.
_REFERENCE = "TrackableReference"


def copy_of(model: M, exchange: Callable[[keras.layers.Layer], Any] | None = None) -> M:
    """Return a model that gives what `model` gives, sharing none of its weights; not compiled.

    Args:
        model: Any model, learners included.
        exchange: A layer to another, built one that stands for it in the copy, or to `None`. It is
            asked of the layers of Functional and Sequential models within each other, whose
            configuration says of which class each is.

    Raises:
        ValueError: If a layer keeps weights or layers where they cannot be exchanged; it is named.
    """
    substitutes = {}
    for layer in configured_layers(model) if exchange is not None else []:
        substitute = exchange(layer)  # type: ignore[misc]
        if substitute is not None:
            substitutes[id(layer)] = (layer, substitute)
    new: M = _Copying(model, substitutes).result
    return new


def remade(model: M) -> M:
    """Return a new model of the same configuration, with weights of its own initialisation.

    Raises:
        ValueError: If its configuration cannot make it again; it names the layer.
    """
    layers = model._flatten_layers()
    scope = {keras.saving.get_registered_name(type(x)): type(x) for x in layers}
    try:
        with keras.saving.custom_object_scope(scope):
            new: M = type(model).from_config(model.get_config())
            if not new.built:
                new.build_from_config(model.get_build_config())
        if [v.shape for v in new.variables] != [v.shape for v in model.variables]:
            raise ValueError("another number of weights, or of other shapes, came out")
    except Exception as error:
        at_fault = next((x for x in layers[::-1] if not _has_config(x)), model)
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            "`model` must be one that its get_config() can make again for weights to be drawn "
            f"anew. Received: {at_fault.name!r} of class {type(at_fault).__name__}, with which "
            f"that failed: {why} Give the class a get_config() with all arguments of its "
            "__init__, and register it by @keras.saving.register_keras_serializable()"
        ) from error
    return new


def configured_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers that stand in the configurations of models: those nested by hand don't."""
    found: dict[int, keras.layers.Layer] = {}

    def look(at: Any) -> None:
        functional: list[Any] = [k for k in type(at).__mro__ if k.__name__ == "Functional"]
        # Those of a class with arguments of its own make their layers themselves.
        cls: Any = type(at)
        known = functional and cls.__init__ is functional[0].__init__
        if known or type(at) is keras.Sequential:
            for layer in at.layers:
                if id(layer) not in found:
                    found[id(layer)] = layer
                    look(layer)

    look(model)
    return list(found.values())


def resources_of(model: keras.Model) -> list[Any]:
    """Return the lookup tables and the like in a model, which an export has to name."""
    kind = tf.saved_model.experimental.TrackableResource
    found = {id(p): p for x in _own(model) for p in _parts(x) if isinstance(p, kind)}
    return list(found.values())


@contextlib.contextmanager
def unchanged_on_error(
    model: keras.Model, unless: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Put a model back as it was, layers and all, if what is done with it meanwhile fails.

    The values of weights are left alone; weights that were made meanwhile are gone.

    Args:
        model: A model or a learner.
        unless: Asked after an error whether all is to stay as it is.
    """
    kept = [(x, _attributes(x), _items(x)) for x in _own(model) if not isinstance(x, _FIXED)]
    try:
        yield
    except Exception:
        for x, attributes, items in kept if not unless() else []:
            _fill(x, attributes, items, clear=True)
        raise


class _Copying:
    """One copy, while it is made: by the `id` of an object, the object and what stands for it."""

    def __init__(self, model: Any, substitutes: dict[int, tuple[Any, Any]]) -> None:
        own = _own(model, set(substitutes), compiled=False)
        self.own = {id(x): x for x in own}
        _check_none_is_hidden(own)
        self.made: dict[int, tuple[Any, Any]] = dict(substitutes)
        self.left_out = {id(part) for x in own for part in _compiled(x)}
        self.left_out |= {
            id(x) for x in own if type(x).__name__ == _REFERENCE and id(x.ref) in self.left_out
        }
        changing = [x for x in own if not isinstance(x, _FIXED)]
        for x in changing:
            self.made[id(x)] = (x, _empty(x))
        for x in changing:
            self._fill(x)
        for old, new in [*substitutes.values(), *((x, self.made[id(x)][1]) for x in changing)]:
            if isinstance(old, keras.Operation):
                for name in _CALLS:
                    # Calls in other models stay in their place, for calls are counted.
                    getattr(new, name)[:] = [self._of_call(x, name) for x in getattr(old, name)]
                    getattr(new, name)[:] = [x for x in getattr(new, name) if x is not _GONE]
        self.result = self._of(model)

    def _fill(self, x: Any) -> None:
        new = self.made[id(x)][1]
        if new is x or isinstance(x, tf.Variable | np.ndarray):
            return
        attributes: dict[str, Any] = {}
        for name, value in _attributes(x).items():
            if name in _CALLS and isinstance(x, keras.Operation):
                attributes[name] = []
            elif name in _BY_ID:
                attributes[name] = self._by_id(value)
            elif not (name in _COMPILED and isinstance(x, keras.Model)):
                attributes[name] = self._of(value)
        if isinstance(x, keras.Model):
            # As of a trainer that was not compiled, and is in no strategy's scope.
            fresh = vars(keras.Model.__bases__[0]())
            attributes |= {k: v for k, v in fresh.items() if k not in _NO_COMPILATION}
        items = _items(x)
        if isinstance(items, dict):
            items = {self._of(k): self._of(v) for k, v in items.items()}
        elif items is not None:
            items = [self._of(value) for value in items]
        _fill(new, attributes, items)

    def _of(self, x: Any) -> Any:
        """Return what stands for `x`, which is `x` itself where that is shared."""
        if id(x) in self.left_out:
            return _GONE
        if id(x) in self.made:
            return self.made[id(x)][1]
        if id(x) not in self.own:
            return x
        if isinstance(x, types.FunctionType):
            return self._of_function(x)
        new: Any
        if isinstance(x, types.MethodType):
            new = types.MethodType(self._of(x.__func__), self._of(x.__self__))
        elif isinstance(x, _TRACED):
            function = self._of(x.python_function)
            new = x if function is x.python_function else x._clone(function)
        elif isinstance(x, functools.partial):
            function, args, keywords = x.func, x.args, x.keywords
            new = functools.partial(
                self._of(function),
                *[self._of(v) for v in args],
                **{k: self._of(v) for k, v in keywords.items()},
            )
        else:
            parts = [self._of(part) for part in x]
            if any(part is _GONE for part in parts):
                new = _GONE
            elif all(a is b for a, b in zip(parts, x, strict=True)):
                new = x
            else:
                kind = tuple if isinstance(x, tuple) else frozenset
                new = kind.__new__(type(x), parts)
        self.made[id(x)] = (x, new)
        return new

    def _of_function(self, x: types.FunctionType) -> Any:
        cells = tuple(types.CellType() for _ in x.__closure__ or ())
        new = types.FunctionType(x.__code__, x.__globals__, x.__name__, None, cells)
        self.made[id(x)] = (x, new)
        defaults = tuple(self._of(v) for v in x.__defaults__ or ())
        keywords = {k: self._of(v) for k, v in (x.__kwdefaults__ or {}).items()}
        pairs = [*zip(x.__defaults__ or (), defaults, strict=True)]
        pairs += [(v, keywords[k]) for k, v in (x.__kwdefaults__ or {}).items()]
        for cell, old in zip(cells, x.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # of an empty cell
                cell.cell_contents = self._of(old.cell_contents)
                pairs.append((old.cell_contents, cell.cell_contents))
        if all(a is b or a is x for a, b in pairs):
            # It may be registered with Keras under its name.
            self.made[id(x)] = (x, x)
            return x
        new.__defaults__, new.__kwdefaults__ = defaults or None, keywords or None
        new.__qualname__, new.__module__ = x.__qualname__, x.__module__
        new.__dict__.update({k: self._of(v) for k, v in x.__dict__.items()})
        return new

    def _of_call(self, node: Any, name: str) -> Any:
        there = id(node) in self.made
        return self._of(node) if there else (node if name == "_inbound_nodes" else _GONE)

    def _by_id(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._of(k): self._by_id(v) for k, v in value.items()}
        return {self._of_id(v) for v in value} if isinstance(value, set) else self._of(value)

    def _of_id(self, value: Any) -> Any:
        if not isinstance(value, int | str):
            return self._of(value)
        number, underscore, rest = str(value).partition("_")
        if not number.isdigit() or int(number) not in self.made:
            return value
        new = id(self.made[int(number)][1])
        return f"{new}{underscore}{rest}" if isinstance(value, str) else new


def _own(model: Any, without: Any = (), *, compiled: bool = True) -> list[Any]:
    """Return all objects that are a model's own, from it on; nothing of the calls of its layers.

    Args:
        model: Where to begin.
        without: Objects to stop at, by `id`.
        compiled: Whether what `compile` has made belongs to it.
    """
    found, ahead, without = {id(model): model}, [model], set(without)
    while ahead:
        x = ahead.pop()
        if not compiled:
            without |= {id(part) for part in _compiled(x)}
        for part in _parts(x):
            if id(part) not in found and id(part) not in without and not _is_shared(part):
                found[id(part)] = part
                ahead.append(part)
    return list(found.values())


def _check_none_is_hidden(own: list[Any]) -> None:
    """Raise if what is shared, because it is not known how it is made, holds what is not."""
    targets = {id(x) for x in own if isinstance(x, keras.Layer | keras.Variable | tf.Variable)}
    ordinary = type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType
    left_out = {id(part) for x in own for part in _compiled(x)}
    for x in own:
        for part in (p for p in _parts(x) if id(p) not in left_out):
            if not gc.is_tracked(part) or isinstance(part, ordinary) or not _is_shared(part):
                continue
            inside = gc.get_referents(part)
            dicts = [y for z in inside if type(z) is dict for y in gc.get_referents(z)]
            if any(id(y) in targets for y in (*inside, *dicts)):
                where = type(x).__name__
                where = (
                    f"layer {x.name!r} ({where})" if isinstance(x, keras.Layer) else f"a {where}"
                )
                raise ValueError(
                    "`model` must have layers that keep their weights and layers as attributes, in "
                    f"lists or in dicts, for it to be copied. Received: {where}, which keeps some "
                    f"in a {type(part).__name__}"
                )


def _is_shared(x: Any) -> bool:
    """Return whether an object is no model's own: it never changes, or Python cannot copy it."""
    kind = type(x)
    if kind is types.FunctionType:
        return not (x.__closure__ or x.__defaults__ or x.__kwdefaults__)
    if issubclass(kind, (*_CONTAINERS, *_FIXED, np.ndarray, tf.Variable)):
        return False
    if issubclass(kind, type | types.ModuleType | enum.Enum):
        return True
    if kind.__module__.partition(".")[0] in _OTHERS:
        return kind.__name__ != _REFERENCE
    try:
        object.__new__(kind)
    except TypeError:  # made of something else than Python
        return True
    return False


def _compiled(x: Any) -> list[Any]:
    """Return what `compile` has made for a model."""
    if not isinstance(x, keras.Model):
        return []
    return [vars(x)[name] for name in _COMPILED if vars(x).get(name) is not None]


def _parts(x: Any) -> list[Any]:
    """Return the objects that stand in an object."""
    attributes = _attributes(x)
    if isinstance(x, keras.Operation):
        attributes = {k: v for k, v in attributes.items() if k not in _CALLS}
    parts = list(attributes.values())
    items = _items(x)
    if isinstance(items, dict):
        parts += [*items.keys(), *items.values()]
    elif items is not None:
        parts += items
    if isinstance(x, types.FunctionType):
        parts += [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        for cell in x.__closure__ or ():
            with contextlib.suppress(ValueError):  # of an empty cell
                parts.append(cell.cell_contents)
    elif isinstance(x, types.MethodType):
        parts += [x.__func__, x.__self__]
    elif isinstance(x, _TRACED):
        parts.append(x.python_function)
    elif isinstance(x, functools.partial):
        parts += [x.func, *x.args, *x.keywords.values()]
    return parts


def _attributes(x: Any) -> dict[str, Any]:
    """Return the attributes of an object by name, in its dict and in slots."""
    if isinstance(x, tf.Variable | np.ndarray | types.MethodType | _TRACED):
        return {}
    names = {
        name
        for kind in type(x).__mro__
        for name in _tuple(kind.__dict__.get("__slots__", ()))
        if not name.startswith("__") and hasattr(x, name)
    }
    try:
        own = dict(object.__getattribute__(x, "__dict__"))
    except AttributeError:
        own = {}
    return {**{name: getattr(x, name) for name in names}, **own}


def _items(x: Any) -> Any:
    """Return what a container holds, as a dict or a list."""
    if isinstance(x, dict):
        return dict(x)
    return list(x) if isinstance(x, list | set | tuple | frozenset) else None


def _empty(x: Any) -> Any:
    """Return what an object's copy is, before it is filled."""
    kind = type(x)
    if isinstance(x, tf.Variable):
        return tf.Variable(
            tf.convert_to_tensor(x), trainable=x.trainable, name=x.name.partition(":")[0]
        )
    if isinstance(x, np.ndarray):
        return x.copy()
    base = next((c for c in (collections.OrderedDict, *_CONTAINERS) if issubclass(kind, c)), object)
    new = base.__new__(kind)
    if isinstance(x, collections.defaultdict):
        new.default_factory = x.default_factory
    return new


def _fill(x: Any, attributes: dict[str, Any], items: Any, *, clear: bool = False) -> None:
    """Put attributes and items into an object, past what its class does when they are set."""
    if isinstance(x, tf.Variable | np.ndarray):
        return
    inside = getattr(x, "__dict__", None)
    if clear and inside is not None:
        inside.clear()
    for name, value in attributes.items():
        if value is _GONE:
            continue
        if inside is not None and not isinstance(
            getattr(type(x), name, None), types.MemberDescriptorType
        ):
            inside[name] = value
        else:
            object.__setattr__(x, name, value)
    if isinstance(x, dict):
        base = collections.OrderedDict if isinstance(x, collections.OrderedDict) else dict
        if clear:
            base.clear(x)
        for key, value in items.items():
            if key is not _GONE and value is not _GONE:
                base.__setitem__(x, key, value)
    elif isinstance(x, list | set):
        kind: Any = list if isinstance(x, list) else set
        if clear:
            kind.clear(x)
        add = kind.extend if isinstance(x, list) else kind.update
        add(x, [value for value in items if value is not _GONE])


def _tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _has_config(layer: keras.layers.Layer) -> bool:
    try:
        layer.get_config()
    except NotImplementedError:
        return False
    return True
