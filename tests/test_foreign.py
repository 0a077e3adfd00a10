"""What tfmeta needs that is not public elsewhere: it is there, is called, and is in one place.

Where a release of Keras or TensorFlow takes a name away, the test with that name fails.
"""

from __future__ import annotations

import ast
import functools
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmeta.foreign import derivatives, of_keras, of_numpy, of_tensorflow

PACKAGE = Path(__file__).parents[1] / "tfmeta"


def functional() -> keras.Model:
    inputs = keras.Input((3,))
    x = keras.layers.Dense(2)(inputs)
    return keras.Model(inputs, keras.layers.Add()([x, x]))


def sequential() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def compiled() -> keras.Model:
    model = functional()
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    return model


def tracings_are_warned_of(changed: Callable[[Any], Any]) -> bool:
    """Whether TensorFlow warns when functions of one code are traced, once each."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]

    def traced() -> None:
        def step(x: tf.Tensor) -> tf.Tensor:
            return x + 1

        changed(tf.function(step, autograph=False))(tf.ones([2]))

    tf.get_logger().addHandler(handler)
    try:
        for _ in range(8):
            traced()
    finally:
        tf.get_logger().removeHandler(handler)
    return any("retracing" in text for text in said)


def logits_noted() -> bool:
    return hasattr(keras.activations.softmax(tf.ones([2, 3])), of_keras.LOGITS)


def mask_noted() -> bool:
    embedded = keras.layers.Embedding(4, 2, mask_zero=True)(np.ones((1, 2)))
    return hasattr(embedded, of_keras.MASK)


def told_in_validation(told: Callable[[Any, dict[str, Any]], bool]) -> bool:
    """Whether something is so of the model, or of the arguments, where `fit` evaluates."""
    seen: list[bool] = []

    class Model(keras.Sequential):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(told(self, kwargs))
            return super().evaluate(*args, **kwargs)

    model = Model([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    pair = np.ones((2, 3)), np.ones((2, 2))
    model.fit(*pair, validation_data=pair, verbose=0)
    return seen == [True]


def signature_is_asked_for() -> bool:
    """Whether TensorFlow asks a model that is saved for its signature."""
    asked: list[bool] = []

    class Model(keras.Sequential):
        @property
        def _default_save_signature(self) -> None:
            asked.append(True)

    module = tf.Module()
    module.model = Model([keras.Input((3,)), keras.layers.Dense(2)])
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder)
    return bool(asked)


def begun(name: str) -> bool:
    model = compiled()
    assert name in vars(model)
    return True


def called_by_fit(name: str) -> bool:
    """Whether `fit` calls a method that is overridden."""
    calls: list[str] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return getattr(keras.Model, name)(self, *args, **kwargs)

    layer = keras.layers.Dense(2, kernel_regularizer="l2")
    inputs = keras.Input((3,))
    model = type("Model", (keras.Model,), {name: call})(inputs, layer(inputs))
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    return bool(calls)


def maker() -> Any:
    return of_keras.maker_of(functional().outputs[0])[0]


def renormalised() -> bool:
    if "renorm" not in keras.layers.BatchNormalization().get_config():
        return True  # as before Keras 3.13
    layer = of_keras.OpenBatchNormalization(renorm=True)
    layer.build((None, 3))
    ones = tf.ones([3])
    return len(layer.renormalized(ones, ones, layer.gamma, layer.beta, "float32")) == 4


def mapped(folder: Path) -> bool:
    array = np.memmap(folder / "file", "uint8", "w+", shape=(3,))
    return of_numpy.mapping_of(array) is not None


# A check for each private name in `tfmeta.foreign`, true while it is there and does what it did.
def counted_by(callback: str, name: str) -> bool:
    """Whether a callback of Keras, if this version has it, still counts under a name."""
    kind = getattr(keras.callbacks, callback, None)
    return kind is None or name in "".join(map(inspect.getsource, kind.__mro__[:-1]))


COUNTED = {
    "_batches_seen_since_last_saving": "ModelCheckpoint",
    "_last_batch_seen": "ModelCheckpoint",
    "_current_epoch": "ModelCheckpoint",
    "_total_batches_seen": "OrbaxCheckpoint",
    "_ema_weights_in_model": "SwapEMAWeights",
    "_global_test_batch": "TensorBoard",
    "_global_train_batch": "TensorBoard",
    "_train_accumulated_time": "TensorBoard",
}

CHECKS: dict[str, Callable[[], Any]] = {
    **{k: functools.partial(counted_by, callback, k) for k, callback in COUNTED.items()},
    "_all_reduce_sum_gradients": lambda: keras.optimizers.SGD()._all_reduce_sum_gradients,
    "_aggregate_additional_loss": lambda: called_by_fit("_aggregate_additional_loss"),
    "_cardinality": lambda: known_length(),
    "_compile_loss": lambda: compiled()._compile_loss.metrics is not None,
    "_compile_metrics": lambda: of_keras.metrics_are_built(compiled()),
    "_compose_transforms": renormalised,
    "_default_save_signature": signature_is_asked_for,
    "_omit_frequent_tracing_warning": lambda: (
        tracings_are_warned_of(lambda x: x)
        and not tracings_are_warned_of(of_tensorflow.one_of_many)
    ),
    "_eval_epoch_iterator": lambda: told_in_validation(
        lambda model, _: model._eval_epoch_iterator is not None
    ),
    "_flatten_layers": lambda: len(of_keras.layers_of(functional())) == 4,
    "_fn_kwargs": lambda: of_keras.arguments_of_loss(keras.losses.CosineSimilarity()),
    "_functional": lambda: of_keras.graph_of(sequential()) is not None,
    "_gradient_registry": lambda: overlaid(),
    "_id_in_cluster": lambda: hasattr(extended(), "_id_in_cluster"),
    "_inbound_nodes": lambda: maker().name,
    "_initial_epoch": lambda: begun("_initial_epoch"),
    "_inputs_struct": lambda: of_keras.graph_of(functional()) is not None,
    "_keras_history": lambda: maker().name,
    "_keras_logits": logits_noted,
    "_keras_mask": mask_noted,
    "_kernel": lambda: of_keras.kernel_of(sequential().layers[0]) is not None,
    "_loss_tracker": lambda: of_keras.loss_tracker_of(compiled()).name == "loss",
    "_maybe_symbolic_build": lambda: called_by_fit("_maybe_symbolic_build"),
    "_merge_function": lambda: of_keras.merge_function_of(keras.layers.Add()) is not None,
    "_model": lambda: "_model" in vars(keras.callbacks.Callback()),
    "_moments": lambda: masked_statistics(),
    "_nodes_by_depth": lambda: len(of_keras.nodes_of(functional())) == 3,
    "_num_workers": lambda: hasattr(extended(), "_num_workers"),
    "_renorm_correction_and_moments": renormalised,
    "_run_through_graph": lambda: through_graph(),
    "_self_": lambda: tracked(),
    "_trainable_variables": lambda: len(of_keras.own_weights(sequential().layers[0])) == 2,
    "_use_cached_eval_dataset": lambda: told_in_validation(
        lambda _, given: of_keras.FROM_WITHIN_FIT in given
    ),
    "tensorflow.python.client": lambda: of_tensorflow.memory_of_gpus() is not None,
    "tensorflow.python.framework": lambda: (
        of_tensorflow.has_a_state("AssignVariableOp") and not of_tensorflow.has_a_state("MatMul")
    ),
    "tensorflow.python.ops.control_flow_util": lambda: compiled_by_xla(),
}


def known_length() -> bool:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    data = tf.data.Dataset.range(4)
    shared = strategy.distribute_datasets_from_function(lambda context: data)
    of_tensorflow.give_cardinality(shared, 7)
    return int(shared.cardinality) == 7


def extended() -> Any:
    return tf.distribute.MultiWorkerMirroredStrategy().extended


def masked_statistics() -> bool:
    layer = of_keras.OpenBatchNormalization()
    layer.build((None, None, 1))
    x, mask = tf.constant([[[1.0], [3.0], [9.0]]]), tf.constant([[True, True, False]])
    mean, variance = layer.masked_moments(x, mask)
    return bool(np.allclose(mean, 2)) and bool(np.allclose(variance, 1, atol=1e-5))


def overlaid() -> bool:
    asked: list[str] = []

    def lookup(name: str) -> Any:
        asked.append(name)
        return of_tensorflow.gradient_of(name)

    with of_tensorflow.looking_up_gradients(lookup), tf.GradientTape() as tape:
        x = tf.constant(2.0)
        tape.watch(x)
        slope = tape.gradient(x * x, x)
    return "Mul" in asked and float(slope) == 4.0


def through_graph() -> bool:
    model = functional()

    def operation(layer: Any) -> Any:
        return (
            layer if isinstance(layer, keras.layers.InputLayer) else lambda x: tf.nest.flatten(x)[0]
        )

    return bool(np.all(of_keras.run_through_graph(model, tf.ones([1, 3]), operation) == 1))


def tracked() -> bool:
    module = tf.Module()
    module.parts = {"a": [tf.Variable(1.0)]}
    return any(of_keras.of_tracking(name) for name in vars(module))


def compiled_by_xla() -> bool:
    seen: list[bool] = []

    def function(x: Any) -> Any:
        seen.append(of_tensorflow.in_xla())
        return x + 1

    for xla in (True, False):
        tf.function(function, jit_compile=xla, autograph=False)(tf.ones([]))
    return seen == [True, False]


def private_names(source: str, defined: bool = False) -> Iterator[str]:
    """The private names in a module: attributes, words, and modules that are imported.

    With `defined` those of its own functions, too, which may override another's.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Constant) and _is_private(node.value):
            yield node.value
        elif defined and isinstance(node, ast.FunctionDef) and _is_private(node.name):
            yield node.name
        elif isinstance(node, ast.ImportFrom) and _is_internal(node.module or ""):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_internal(alias.name))


def _is_private(name: object) -> bool:
    private = isinstance(name, str) and name.startswith("_") and not name.startswith("__")
    return private and str(name).isidentifier() and len(str(name)) > 1


def _is_internal(module: str) -> bool:
    return module.startswith(("tensorflow.python", "keras.src"))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.filterwarnings("ignore")
def test_it_is_there(name: str) -> None:
    assert CHECKS[name]()


def test_of_numpy(tmp_path: Path) -> None:
    assert mapped(tmp_path)
    assert of_numpy.mapping_of(np.ones(3)) is None


def test_each_private_name_is_checked() -> None:
    found = {
        name
        for path in (PACKAGE / "foreign").glob("of_[kt]*.py")
        for name in private_names(path.read_text(), defined=True)
    }
    assert found - {"_Registry"} == set(CHECKS)


def test_no_other_module_has_private_names() -> None:
    """NamedTuple's `_replace` is public, and what a module defines itself is its own."""
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    own = {"_replace", "_initializer", "_task"}
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                parts = [x for target in targets for x in ast.walk(target)]
                own |= {x.attr for x in parts if isinstance(x, ast.Attribute)}
                own |= {x.id for x in parts if isinstance(x, ast.Name)}
    for path, source in sources.items():
        if path.parent.name != "foreign":
            used = set(private_names(source))
            # A name that tfmeta has given something of its own may still be another's.
            assert not (used - own) | (used & set(CHECKS)), path


REPLACED: dict[str, tuple[Any, list[Callable[[], Any]]]] = {
    "moments": (
        tf.nn,
        [
            lambda: keras.layers.BatchNormalization()(np.ones((2, 3)), training=True),
            lambda: keras.layers.LayerNormalization()(np.ones((2, 3))),
            lambda: keras.layers.GroupNormalization(1)(np.ones((2, 3))),
        ],
    ),
    "resize": (
        tf.image,
        [
            lambda: keras.layers.UpSampling2D(interpolation="bilinear")(np.ones((1, 2, 2, 1))),
            lambda: keras.layers.Resizing(4, 4)(np.ones((1, 2, 2, 1), "float32")),
        ],
    ),
    "max_pool": (tf.nn, [lambda: keras.layers.MaxPooling2D()(np.ones((1, 2, 2, 1)))]),
    "ctc_loss": (
        tf.nn,
        [lambda: keras.losses.CTC()(np.ones((1, 2), "int32"), np.ones((1, 4, 3), "float32"))],
    ),
    "reduce_logsumexp": (
        tf.math,
        [lambda: keras.losses.Circle()(np.array([0, 1]), np.eye(2, dtype="float32"))],
    ),
    "sqrt": (tf.math, [lambda: keras.constraints.UnitNorm()(tf.ones([2, 2]))]),
}


@pytest.mark.parametrize("name", REPLACED)
def test_keras_calls_what_is_replaced(name: str) -> None:
    """Else a derivative would be wrong again, without a word."""
    owner, users = REPLACED[name]
    original = getattr(owner, name)
    for use in users:
        calls: list[str] = []

        def counted(*args: Any, calls: list[str] = calls, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        with derivatives.replaced(owner, name, counted):
            use()
        assert calls, f"Keras does not call {name} any more"


def test_all_that_is_replaced_is_tested() -> None:
    """By the names that `replaced` is called with."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "replaced":
                name = node.args[1]
                assert isinstance(name, ast.Constant)
                found.add(name.value)
    assert found == set(REPLACED)
