"""Every metric of `keras.metrics` sees the queries of all tasks as one batch of Keras's would be.

The right value is that of the metric alone, updated once with the queries of all tasks one after
another. Many metrics share one learner, and so one trace. What Keras adds turns this red.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

import tfmeta

TASKS, SUPPORT, QUERIES, FEATURES, OUTPUTS = 3, 4, 5, 3, 3


class Family(NamedTuple):
    """Metrics of the same labels: what the model ends in, its loss, and the metrics themselves."""

    labels: Any
    outputs: int
    activation: str
    loss: str
    metrics: list[Any]


# Their numbers are integers by default, and weights that are not whole would be cut off.
REAL = {"dtype": "float64"}


def _with(name: str, *calls: dict[str, Any]) -> list[Any]:
    return [(name, arguments) for arguments in calls]


CLASSES = Family(
    lambda r, *n: r.integers(OUTPUTS, size=n).astype("int32"),
    OUTPUTS,
    "softmax",
    "sparse_categorical_crossentropy",
    [
        *_with("SparseCategoricalAccuracy", {}),
        *_with("SparseCategoricalCrossentropy", {}, {"ignore_class": 0}, {"axis": 1}),
        *_with("SparseCategoricalCrossentropy", {"from_logits": True}),
        *_with("IoU", {**REAL, "num_classes": 3, "target_class_ids": [1], "sparse_y_pred": False}),
        *_with("MeanIoU", {**REAL, "num_classes": 3, "sparse_y_pred": False}),
        *_with("MeanIoU", {**REAL, "num_classes": 3, "sparse_y_pred": False, "ignore_class": 0}),
    ],
)
ONE_HOT = Family(
    lambda r, *n: np.eye(OUTPUTS)[r.integers(OUTPUTS, size=n)],
    OUTPUTS,
    "softmax",
    "categorical_crossentropy",
    [
        *_with("AUC", {}, {"curve": "PR"}, {"num_thresholds": 7}, {"thresholds": [0.3, 0.6]}),
        *_with("AUC", {"multi_label": True, "num_labels": 3}),
        *_with("AUC", {"multi_label": True, "num_labels": 3, "label_weights": [1.0, 2.0, 0.5]}),
        *_with("AUC", {"summation_method": "minoring"}, {"from_logits": True}),
        *_with("CategoricalAccuracy", {}),
        *_with("CategoricalCrossentropy", {}, {"label_smoothing": 0.1}, {"from_logits": True}),
        *_with("CategoricalCrossentropy", {"axis": 1}),
        *_with("CategoricalHinge", {}),
        *_with("F1Score", {"average": "macro"}, {"average": "weighted"}, {"threshold": 0.4}, {}),
        *_with("FBetaScore", {"average": "micro"}, {"beta": 2.0}, {"threshold": 0.4}),
        *_with("KLDivergence", {}),
        *_with("OneHotIoU", {**REAL, "num_classes": 3, "target_class_ids": [0, 2]}),
        *_with("OneHotMeanIoU", {**REAL, "num_classes": 3}),
        *_with("Precision", {}, {"top_k": 2}, {"class_id": 1}, {"thresholds": [0.3, 0.6]}),
        *_with("Recall", {}, {"top_k": 2}, {"class_id": 1}, {"thresholds": [0.3, 0.6]}),
        *_with("PrecisionAtRecall", {"recall": 0.5}, {"recall": 0.5, "class_id": 1}),
        *_with("RecallAtPrecision", {"precision": 0.4}, {"precision": 0.4, "num_thresholds": 9}),
        *_with("SensitivityAtSpecificity", {"specificity": 0.5}),
        *_with("SpecificityAtSensitivity", {"sensitivity": 0.5}),
        *_with("TruePositives", {}, {"thresholds": [0.3, 0.6]}),
        *_with("TrueNegatives", {}, {"thresholds": [0.3, 0.6]}),
        *_with("FalsePositives", {}, {"thresholds": [0.3, 0.6]}),
        *_with("FalseNegatives", {}, {"thresholds": [0.3, 0.6]}),
    ],
)
BINARY = Family(
    lambda r, *n: r.integers(2, size=(*n, 1)).astype("float64"),
    1,
    "sigmoid",
    "binary_crossentropy",
    [
        *_with("Accuracy", {}),
        *_with("BinaryAccuracy", {}, {"threshold": 0.6}),
        *_with("BinaryCrossentropy", {}, {"label_smoothing": 0.1}, {"from_logits": True}),
        *_with("BinaryIoU", REAL, {**REAL, "target_class_ids": [1], "threshold": 0.6}),
        *_with("Hinge", {}),
        *_with("SquaredHinge", {}),
    ],
)
NUMBERS = Family(
    lambda r, *n: r.random((*n, 2)) + 0.5,
    2,
    "softplus",
    "mse",
    [
        *_with("ConcordanceCorrelation", {}, {"axis": 0}),
        *_with("CosineSimilarity", {}, {"axis": 0}),
        *_with("LogCoshError", {}),
        *_with("MeanAbsoluteError", {}),
        *_with("MeanAbsolutePercentageError", {}),
        *_with("MeanSquaredError", {}),
        *_with("MeanSquaredLogarithmicError", {}),
        *_with("PearsonCorrelation", {}, {"axis": 0}),
        *_with("Poisson", {}),
        *_with("R2Score", {}, {"class_aggregation": None}),
        *_with("R2Score", {"class_aggregation": "variance_weighted_average"}),
        *_with("RootMeanSquaredError", {}),
    ],
)
FAMILIES = {"classes": CLASSES, "one_hot": ONE_HOT, "binary": BINARY, "numbers": NUMBERS}

# Metrics that are not here, and why.
APART = {
    "SparseTopKCategoricalAccuracy": "Keras has it in single precision only: test_top_k",
    "TopKCategoricalAccuracy": "Keras has it in single precision only: test_top_k",
    "Metric": "the abstract base",
    "MeanMetricWrapper": "what Keras makes of a function: test_functions",
    "Mean": "of values, not of labels and predictions; Keras's compile cannot take it either",
    "Sum": "of values, not of labels and predictions; Keras's compile cannot take it either",
}


def _classes() -> dict[str, Any]:
    found = {name: getattr(keras.metrics, name) for name in dir(keras.metrics)}
    return {name: value for name, value in found.items() if inspect.isclass(value)}


def test_all_of_keras_is_here() -> None:
    tested = {name for family in FAMILIES.values() for name, _ in family.metrics}
    assert tested | APART.keys() == _classes().keys()


def _run(family: Family, metrics: list[Any], axis: str, **fit: Any) -> tuple[Any, Any, Any, Any]:
    """Return Keras's logs of a step that changes nothing, and what the queries were."""
    keras.utils.set_random_seed(0)
    r = np.random.default_rng(0)
    x = r.normal(size=(TASKS, SUPPORT + QUERIES, FEATURES))
    y = family.labels(r, TASKS, SUPPORT + QUERIES)
    inputs = {"support_x": x[:, :SUPPORT], "support_y": y[:, :SUPPORT], "query_x": x[:, SUPPORT:]}
    targets = y[:, SUPPORT:]
    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(family.outputs, family.activation)]
    )
    learner = tfmeta.MAML(model, 0.5, task_axis=axis)
    learner.compile(keras.optimizers.SGD(0.0), family.loss, **metrics, jit_compile=False)
    data = {"x": inputs, "y": targets, "batch_size": TASKS, "verbose": 0, **fit}
    logs = {k: v[0] for k, v in learner.fit(**data).history.items()}
    scores = learner.evaluate(**data, return_dict=True)
    for name, value in scores.items():
        np.testing.assert_allclose(value, logs[name], rtol=1e-6, err_msg=f"evaluate: {name}")
    return logs, inputs, targets, learner.predict(inputs, batch_size=TASKS, verbose=0)


@pytest.mark.filterwarnings("ignore:.*received `from_logits=True`")
@pytest.mark.parametrize(
    ("family", "weighted"),
    [
        # Weights reach all metrics in the same way: those of one family are quick. One-hot labels
        # are the same numbers in another form.
        pytest.param(
            name,
            weighted,
            marks=[]
            if name != "one_hot" and (not weighted or name == "classes")
            else pytest.mark.slow,
        )
        for name in FAMILIES
        for weighted in (False, True)
    ],
)
def test_metrics(family: str, weighted: bool) -> None:
    chosen = FAMILIES[family]
    weights = np.random.default_rng(2).random((TASKS, QUERIES)) * 2 if weighted else None
    tested = [
        (name, arguments)
        for name, arguments in chosen.metrics
        # They have a value for each output, which weights of examples do not fit in Keras either.
        if not (weighted and arguments.get("axis") == 0)
    ]
    made = [_classes()[name](**arguments) for name, arguments in tested]
    for i, metric in enumerate(made):
        metric.name = f"m{i}"
    argument = "weighted_metrics" if weighted else "metrics"
    given = {} if weights is None else {"sample_weight": weights}
    # Packed or in turn, a metric sees the same predictions.
    axis = "loop" if weighted else "packed"
    logs, _, targets, predictions = _run(chosen, {argument: made}, axis, **given)
    y = targets.reshape(-1, *targets.shape[2:])
    # Predictions as the model itself makes them, so that it knows what they were made of.
    p = predictions.reshape(-1, *predictions.shape[2:])
    for i, (name, arguments) in enumerate(tested):
        alone = _classes()[name](**arguments)
        if arguments.get("from_logits") and name.endswith("entropy"):
            continue  # test_logits_behind_an_activation
        alone.update_state(y, p, None if weights is None else weights.reshape(-1))
        right = np.asarray(alone.result())
        np.testing.assert_allclose(logs[f"m{i}"], right, rtol=1e-6, err_msg=f"{name} {arguments}")


def test_functions() -> None:
    def far(y: Any, p: Any) -> Any:
        return keras.ops.cast(keras.ops.abs(y[:, 0] - p[:, 1]) > 0.4, "float32")

    logs, _, targets, predictions = _run(NUMBERS, {"metrics": [far, "mae"]}, "packed")
    assert logs["far"] == pytest.approx(np.mean(abs(targets[..., 0] - predictions[..., 1]) > 0.4))
    assert logs["mae"] == pytest.approx(np.abs(targets - predictions).mean(), rel=1e-6)


@pytest.mark.parametrize("family", ["classes", "one_hot"])
def test_top_k(family: str) -> None:
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    name = {"classes": "SparseTopK", "one_hot": "TopK"}[family] + "CategoricalAccuracy"
    metric = _classes()[name](k=2, name="m")
    logs, _, targets, predictions = _run(FAMILIES[family], {"metrics": [metric]}, "packed")
    labels = targets if family == "classes" else targets.argmax(-1)
    best = np.argsort(predictions, axis=-1)[..., -2:]
    assert logs["m"] == pytest.approx((best == labels[..., None]).any(-1).mean())


@pytest.mark.parametrize("axis", ["packed", pytest.param("loop", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "metric"),
    [
        ("classes", "SparseCategoricalCrossentropy"),
        ("one_hot", "CategoricalCrossentropy"),
        ("binary", "BinaryCrossentropy"),
    ],
)
def test_logits_behind_an_activation(family: str, metric: str, axis: str) -> None:
    # Keras takes the logits that the activation was given, and warns.
    chosen = FAMILIES[family]
    made = _classes()[metric](from_logits=True, name="m")
    with pytest.warns(UserWarning, match="does not represent logits"):
        logs, _, targets, predictions = _run(chosen, {"metrics": [made]}, axis)
    plain = _classes()[metric]()
    plain.update_state(
        targets.reshape(-1, *targets.shape[2:]), predictions.reshape(-1, predictions.shape[-1])
    )
    np.testing.assert_allclose(logs["m"], np.asarray(plain.result()), rtol=1e-6)
