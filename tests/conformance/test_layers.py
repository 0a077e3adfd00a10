"""Every layer of Keras, and every argument of those with a packed rule: Keras's own numbers.

The classes and their arguments are read out of `keras.layers`: one that has no recipe, and an
argument without a value to try, are errors. Layers stand beside each other as the branches of one
small model, in double precision and eagerly, and two tasks of unequal content are learnt by one
inner step: packed, in turn, and as Keras would by a tape of the test's own.
"""

from __future__ import annotations

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tests.conformance.recipes import (
    ENDINGS,
    IN_TURN,
    NOT_LAYERS_OF_A_MODEL,
    NOT_TRIED,
    PACKED,
    TOGETHER,
    VALUES,
    VALUES_IN_TURN,
    WITHOUT_A_RULE,
)
from tfmeta.packed import tried
from tfmeta.packed.rules import EVERYWHERE, RULES

pytestmark = pytest.mark.filterwarnings(
    # Of models with masks: what is behind the layer takes none.
    "ignore:.*does not support masking.*:UserWarning"
)
RATE, STEP = 0.1, 1e-5
TASKS, SUPPORT, QUERIES, OUTPUTS = 2, 3, 3, 2
# Of these there is no slope to take: weights in single precision; no gradient in double precision
# on a CPU; compiled anew for each call; gradients stopped on the way; images that TensorFlow
# resizes in single precision.
SINGLE = ("dtype", "lora_rank", "lora_alpha", "dilation_rate", "groups")
SINGLE += ("interpolation",)
# TensorFlow has no convolution or pooling of them on a CPU; learners refuse renormalisation but
# for batch_norm="running".
NO_NUMBERS = ("data_format", "renorm", "renorm_clipping", "renorm_momentum")


def classes():
    """Return each class of `keras.layers` by its own name."""
    found = [x for x in vars(layers).values() if inspect.isclass(x)]
    return {x.__name__: x for x in found}


def arguments(cls):
    """Return the constructor arguments that a layer has, its base class's too."""
    signatures = [inspect.signature(c.__init__).parameters for c in (layers.Layer, cls)]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signatures[1].values())
    names = {
        n: p.default for s in signatures[not takes_more :] for n, p in s.items() if p.kind in kinds
    }
    return {n: d for n, d in names.items() if n != "self"}


def ending(name):
    return next((f"*{e}" for e in ENDINGS if name.endswith(e)), name)


def cases(name):
    """Return the arguments of a layer, each off its default: `(argument, value, in turn?)`."""
    recipe, found = PACKED[name], []
    for argument in arguments(classes()[name]):
        if (name, argument) in NOT_TRIED:
            continue
        values = recipe.values.get(argument)
        if values is None and argument not in needed(recipe):
            values = VALUES.get(argument) or ENDINGS.get(ending(argument)[1:])
            assert values is not None, f"{name}: no value to try of the argument {argument!r}"
        in_turn = argument in IN_TURN or ending(argument) in IN_TURN
        found += [(argument, value, in_turn) for value in values or []]
        others = VALUES_IN_TURN.get((name, argument), ([],))[0]
        found += [(argument, value, True) for value in others]
    return found


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def needed(recipe):
    return recipe.needed() if callable(recipe.needed) else recipe.needed


def made(name, *given):
    """Return a layer with arguments given as `(argument, value)`."""
    changed = dict(given)
    for argument, _ in given:
        changed |= TOGETHER.get(argument, {})
    recipe = PACKED.get(name) or WITHOUT_A_RULE[name]
    return classes()[name](**{**needed(recipe), **changed})


def model_of(recipe, shape, branches):
    """Return a model with layers side by side, behind and before layers that learn."""
    x = inputs = keras.Input(shape, dtype="int32" if recipe.tokens else None)
    if not recipe.tokens and not recipe.raw:
        x = layers.Dense(shape[-1], name="before")(x)
    outputs = []
    for layer in branches:
        y = recipe.call(layer, x)
        outputs.append(layers.Flatten()(y) if len(y.shape) > 2 else y)
    y = layers.Concatenate(name="beside")(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, layers.Dense(OUTPUTS, name="behind")(y))


def episodes(recipe, shape):
    rng = np.random.default_rng(1)

    def draw(n):
        size = (TASKS, n, *shape)
        return rng.integers(recipe.tokens, size=size) if recipe.tokens else rng.normal(size=size)

    x = {"support_x": draw(SUPPORT), "query_x": draw(QUERIES)}
    x["support_y"] = rng.normal(size=(TASKS, SUPPORT, OUTPUTS))
    return x, rng.normal(size=(TASKS, QUERIES, OUTPUTS))


def randomize(model):
    rng = np.random.default_rng(2)
    for v in model.variables:
        if "seed" in v.path:
            continue
        fan = np.prod(v.shape[:-1], initial=1.0)
        positive = "var" in v.name or "stddev" in v.name
        v.assign(
            rng.uniform(0.5, 1.5, v.shape) if positive else rng.normal(size=v.shape) / fan**0.5
        )


def call(model, params, state, x, training):
    """Return outputs, state, and the losses of activities."""
    outputs, state, losses = model.stateless_call(
        params, state, x, training=training, return_losses=True
    )
    return outputs, state, sum(tf.cast(v, "float64") for v in losses) - penalty(model, params)


def penalty(model, params):
    pairs = zip(model.trainable_variables, params, strict=True)
    return sum(tf.cast(v.regularizer(p), "float64") for v, p in pairs if v.regularizer)


def by_keras(model, params, x, y, training):
    """Return the mean loss of the queries behind one inner step, and the predictions."""
    losses, predictions = [], []
    for t in range(TASKS):
        state = [v.value for v in model.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(params)
            outputs, state, active = call(model, params, state, x["support_x"][t], training)
            loss = tf.reduce_mean((outputs - x["support_y"][t]) ** 2)
            loss += active + penalty(model, params)
        moved = [
            p if g is None else p - RATE * tf.cast(tf.convert_to_tensor(g), p.dtype)
            for p, g in zip(params, tape.gradient(loss, params), strict=True)
        ]
        moved = [
            v.constraint(p) if v.constraint else p
            for v, p in zip(model.trainable_variables, moved, strict=True)
        ]
        outputs, _, active = call(model, moved, state, x["query_x"][t], training)
        # What is trained is where the inner loop starts.
        losses.append(tf.reduce_mean((outputs - y[t]) ** 2) + active + penalty(model, params))
        predictions.append(outputs)
    return float(tf.add_n(losses) / TASKS), np.stack(predictions)


def difference(a, b, least=0.0):
    """Return the greatest difference, relative to the greatest number."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    assert a.shape == b.shape
    return np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), least, 1e-30)


def step(learner, x, y):
    """Return the loss of a meta-batch and its outer gradient; no weight is changed."""
    before = learner.get_weights()
    trainable = [v.numpy() for v in learner.trainable_variables]
    loss = learner.train_on_batch(x, y)
    gradient = [a - v.numpy() for a, v in zip(trainable, learner.trainable_variables, strict=True)]
    learner.set_weights(before)
    return loss, gradient


def conforms(recipe, shape, branches, *, packed, slope=True, single=False, batch=False):
    """Hold a learner of these layers to Keras: loss, outer gradient, `evaluate`, `adapt`."""
    model = model_of(recipe, shape, branches)
    randomize(model)
    x, y = episodes(recipe, shape)
    learner = tfmeta.MAML(model, RATE, 1)
    learner.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
    learner.build({k: v.shape for k, v in x.items()})
    assert learner.packs == packed, tried(model, model.inputs[0]).obstacle
    close = 1e-5 if single else 1e-6
    params = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    if not recipe.random:
        expected, _ = by_keras(model, params, x, y, True)
        loss, gradient = step(learner, x, y)
        assert difference(loss, expected) <= close
        if packed:
            learner.packs = False
            in_turn, also = step(learner, x, y)
            assert difference(loss, in_turn) <= close
            greatest = max(np.abs(g).max(initial=0) for g in also)
            for v, a, b in zip(model.trainable_variables, gradient, also, strict=True):
                assert difference(a, b, 0.1 * greatest) <= close, v.path
        if slope and not single:
            check_slope(lambda p: by_keras(model, p, x, y, True)[0], params, gradient)
    # Batch normalisation of a transductive learner is by the batch at hand, in evaluation too.
    expected, predictions = by_keras(model, params, x, y, batch)
    for packs in {packed, False}:
        learner.packs = packs
        assert difference(learner.predict_on_batch(x), predictions) <= close
    assert difference(learner.test_on_batch(x, y), expected) <= close
    adapted = learner.adapt(x["support_x"][1], x["support_y"][1])
    assert difference(adapted(x["query_x"][1], training=False), predictions[1]) <= close


def check_slope(function, params, gradient):
    """Hold a gradient to the slope of a function along it and along another way at once."""
    rng = np.random.default_rng(3)

    def unit(way):
        size = np.sqrt(sum((w**2).sum() for w in way))
        return [w / size for w in way], size

    way, _ = unit([rng.normal(size=g.shape) for g in gradient])
    along, size = unit(gradient)
    way, _ = unit([a + b for a, b in zip(along, way, strict=True)])
    ahead, behind = (
        function([p + h * w for p, w in zip(params, way, strict=True)]) for h in (STEP, -STEP)
    )
    ours = sum((g * w).sum() for g, w in zip(gradient, way, strict=True))
    assert abs(ours - (ahead - behind) / (2 * STEP)) <= 1e-6 * size


def test_each_rule_is_tried():
    own = {c.__name__ for c in RULES if not c.__module__.startswith("tfmeta.")}
    assert own == set(PACKED)


def test_rules_name_arguments_that_there_are():
    for cls, rule in RULES.items():
        there = {name for c in cls.__mro__[:-1] for name in arguments(c)}
        assert set(rule.arguments.split()) - there <= {"rms_scaling"}, cls
    assert set(arguments(layers.Layer)) >= EVERYWHERE


@pytest.mark.parametrize("name", PACKED)
def test_what_a_rule_does_not_implement_is_named(name):
    recipe = PACKED[name]
    for argument, value, in_turn in cases(name):
        if in_turn:
            layer = made(name, (argument, value))
            model = model_of(recipe, recipe.shapes[-1], [layer])
            obstacle = tried(model, model.inputs[0]).obstacle
            assert obstacle is not None, (argument, value)
            assert layer.name in obstacle
            assert argument in obstacle or argument in TOGETHER


def chosen(name, kind):
    """Return the layers that stand beside each other, each by what it is given."""
    found, together = [], []
    for argument, value, in_turn in cases(name):
        if argument in NO_NUMBERS:
            continue
        which = "in turn" if in_turn else "single" if argument in SINGLE else "packed"
        if which != kind:
            continue
        # Of what makes no difference, or adds up, one layer is enough.
        if argument == "name" or argument.endswith(("_initializer", "_regularizer")):
            together.append((argument, value))
        else:
            found.append([(argument, value)])
    found += [together] if together else []
    return [[], *found] if kind == "packed" else found


def shapes_and_kinds():
    for name, recipe in PACKED.items():
        for kind in ("packed", "single", "in turn"):
            shapes = recipe.shapes if kind == "packed" else recipe.shapes[-1:]
            for shape in shapes if chosen(name, kind) else ():
                # What there is for images as well is quick there.
                kin = name.endswith("1D")
                quick = kind == "packed" and shape == recipe.shapes[-1] and not kin
                yield pytest.param(name, shape, kind, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "shape", "kind"), list(shapes_and_kinds()))
def test_layers_with_a_rule(name, shape, kind):
    recipe = PACKED[name]
    given = chosen(name, kind)
    conforms(
        recipe,
        shape,
        [made(name, *arguments) for arguments in given],
        packed=kind != "in turn",
        # Behind an outer step, weights with constraints are projected as well.
        slope=shape == recipe.shapes[-1]
        and not any(argument.endswith("_constraint") for x in given for argument, _ in x),
        single=any(argument in SINGLE for x in given for argument, _ in x),
        batch=name == "BatchNormalization",
    )


def test_each_layer_of_keras_is_tried_or_said_not_to_be():
    tables = (PACKED, WITHOUT_A_RULE, NOT_LAYERS_OF_A_MODEL)
    listed = [name for table in tables for name in table]
    assert len(listed) == len(set(listed))
    assert set(classes()) <= set(listed), set(classes()) - set(listed)


def names_without_a_rule():
    for name in filter(classes().__contains__, WITHOUT_A_RULE):
        slow = WITHOUT_A_RULE[name].random or re.search("GRU|RNN|LSTM|Bidirectional|3D", name)
        yield pytest.param(name, marks=pytest.mark.slow if slow else [])


@pytest.mark.parametrize("name", list(names_without_a_rule()))
def test_layers_without_a_rule(name):
    recipe = WITHOUT_A_RULE[name]
    single = "dtype" in needed(recipe)
    conforms(recipe, recipe.shapes[0], [made(name)], packed=False, single=single)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PACKED, *filter(classes().__contains__, WITHOUT_A_RULE)])
def test_saved_and_exported(name, tmp_path):
    recipe = PACKED.get(name) or WITHOUT_A_RULE[name]
    given = chosen(name, "packed") if name in PACKED else [[]]
    model = model_of(recipe, recipe.shapes[-1], [made(name, *x) for x in given])
    randomize(model)
    x, y = episodes(recipe, recipe.shapes[-1])
    learner = tfmeta.MAML(model, RATE, 1)
    learner.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    predictions, loss = learner.predict_on_batch(x), learner.test_on_batch(x, y)
    close = 1e-5 if "dtype" in needed(recipe) else 1e-6
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert difference(loaded.predict_on_batch(x), predictions) <= close
    assert difference(loaded.test_on_batch(x, y), loss) <= close
    learner.export(tmp_path / "exported")
    exported = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    for t in range(TASKS):
        task = {name: part[t] for name, part in x.items()}
        # An export takes what the model takes, and no other type.
        dtypes = {name: spec.dtype for name, spec in exported.structured_input_signature[1].items()}
        task = {name: tf.constant(part, dtypes[name]) for name, part in task.items()}
        assert difference(exported(**task)["predictions"], predictions[t]) <= close
    adapted = learner.adapt(x["support_x"][1], x["support_y"][1])
    adapted.save(tmp_path / "adapted.keras")
    again = keras.models.load_model(tmp_path / "adapted.keras")
    assert difference(again(x["query_x"][1], training=False), predictions[1]) <= close
