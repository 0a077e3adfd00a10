"""Mixtures: which source a step is of, and that nothing of a source is changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfmeta
from tfmeta.data import ClassDataset, EpisodeSampler, FunctionSampler, Mixture

WEIGHTS = {"a": 0.5, "b": 0.2, "c": 0.3}
# Of seed 1, from NumPy's generator and the core's; a change would be another stream of episodes.
GOLDEN_ORDER = [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0]
GOLDEN = "389133b063baeba27988922500085e19771cd1585efc22d927e29d5d5dc97d34"


def images(classes: int, seed: int, shape: tuple[int, ...] = (6, 6, 1)) -> ClassDataset:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (classes * 12, *shape), np.uint8)
    return ClassDataset(pixels, np.repeat(np.arange(classes), 12))


def samplers(**others: Any) -> dict[str, Any]:
    """Three sources of the same ways, shots and queries."""
    return {
        name: EpisodeSampler(images(8 + i, i), 5, 1, 3, seed=i, **others)
        for i, name in enumerate(WEIGHTS)
    }


def source(seed: int, step: int, weights: dict[str, float]) -> str:
    """The twin: the first source at whose end the sum of the weights exceeds a uniform number."""
    u, sum_of = np.random.default_rng([seed, step]).random(), 0.0
    for name, weight in weights.items():
        sum_of += weight
        if u < sum_of:
            return name
    raise AssertionError(u)


def digest(batch: Any) -> str:
    inputs, targets = batch
    arrays = [*(inputs[name] for name in sorted(inputs)), targets]
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()


@pytest.mark.parametrize("seed", [0, 7])
def test_each_step_is_of_one_source_and_that_sources_own_batch(seed: int) -> None:
    parts = samplers()
    mixture = Mixture(parts, WEIGHTS, seed)
    for step in (0, 1, 2, 10, 2**40):
        name = source(seed, step, WEIGHTS)
        assert mixture.draw_source(step) == name
        assert digest(mixture.batch(step, 3)) == digest(parts[name].batch(step, 3))
    assert [mixture.draw_source(step) for step in range(200)] == [
        source(seed, step, WEIGHTS) for step in range(200)
    ]


def test_sources_come_as_often_as_their_weights_say() -> None:
    steps = 4000
    for weights in (WEIGHTS, {"a": 0.0, "b": 1.0, "c": 0.0}, None):
        mixture = Mixture(samplers(), weights, seed=3)
        drawn = [mixture.draw_source(step) for step in range(steps)]
        for name, share in zip(mixture.names, mixture.weights, strict=True):
            # Five standard deviations of a binomial distribution; none where it must be exact.
            bound = 5 * np.sqrt(steps * share * (1 - share))
            assert abs(drawn.count(name) - steps * share) <= bound, (weights, name)


def test_the_golden_batches() -> None:
    mixture = Mixture(samplers(), WEIGHTS, seed=1, source_key="source")
    assert [mixture.names.index(mixture.draw_source(step)) for step in range(12)] == GOLDEN_ORDER
    assert digest(mixture.batch(5, 2)) == GOLDEN


def test_it_is_resumed_and_shared_out_bit_for_bit() -> None:
    mixture = Mixture(samplers(), WEIGHTS, seed=2)
    whole = [mixture.batch(step, 4) for step in range(6)]
    later = mixture.dataset(4, start=3).take(3).as_numpy_iterator()
    assert [digest(batch) for batch in later] == [digest(batch) for batch in whole[3:]]
    shards = [mixture.shard(worker, 2) for worker in range(2)]
    for step, (inputs, targets) in enumerate(whole):
        halves = [shard.batch(step, 2) for shard in shards]
        for name, part in inputs.items():
            joined = np.concatenate([half[0][name] for half in halves])
            np.testing.assert_array_equal(joined, part)
        np.testing.assert_array_equal(np.concatenate([half[1] for half in halves]), targets)


def test_the_source_is_told_where_it_is_asked_for_and_no_learner_heeds_it() -> None:
    told = Mixture(samplers(), WEIGHTS, source_key="source")
    silent = Mixture(samplers(), WEIGHTS)
    assert told.description == "mixture of 0.5 a, 0.2 b, 0.3 c"
    learner = tfmeta.PrototypicalNetwork(keras.Sequential([keras.Input((6, 6, 1)), flat()]))
    for step in range(5):
        inputs, _ = told.batch(step, 2)
        assert inputs["source"].tolist() == [told.names.index(told.draw_source(step))] * 2
        others, _ = silent.batch(step, 2)
        np.testing.assert_array_equal(learner.predict_on_batch(inputs), learner(others))


def flat() -> keras.layers.Layer:
    return keras.layers.Flatten()


@pytest.mark.parametrize("shots", [(1, 1), (1, 3), (1, (1, 3))])
@pytest.mark.parametrize("name", ["MAML", "PrototypicalNetwork"])
def test_learners_are_trained_and_scored(name: str, shots: Any) -> None:
    """On sources of the same shots, of others, and on some with tasks of different sizes."""
    parts = {
        str(i): EpisodeSampler(images(8, i), 5, each, 3, seed=i) for i, each in enumerate(shots)
    }
    mixture = Mixture(parts)
    inputs, _ = mixture.dataset(2).element_spec
    assert inputs["support_x"].shape.as_list() == [2, 5 if shots == (1, 1) else None, 6, 6, 1]
    assert ("support_mask" in inputs) == isinstance(shots[1], tuple)
    layers = [keras.Input((6, 6, 1)), flat(), keras.layers.Dense(5)]
    learner = getattr(tfmeta, name)(keras.Sequential(layers))
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    steps = {"steps_per_epoch": 6, "validation_steps": 2}
    history = learner.fit(
        mixture.dataset(2), validation_data=mixture.dataset(2), verbose=0, **steps
    )
    assert np.isfinite(history.history["val_loss"]).all()
    # In one call or in several, whatever the shapes.
    score = tfmeta.evaluate(learner, mixture, 12, verbose=False)
    for step in (0, 5, 11):
        inputs, targets = mixture.batch(step)
        real = inputs.get("query_mask", np.ones(targets.shape, bool))
        right = np.argmax(learner.predict_on_batch(inputs), -1) == targets
        assert score.per_episode[step] == pytest.approx(right[real].mean())


def test_a_training_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    mixture = Mixture(samplers(), WEIGHTS, seed=4)

    def weights(*epochs: int) -> list[Any]:
        """Those after training in several processes, of which each goes on from the states."""
        folder = tmp_path / str(len(epochs))
        for until in epochs:
            keras.utils.set_random_seed(0)
            layers = [keras.Input((6, 6, 1)), flat(), keras.layers.Dense(4)]
            learner = tfmeta.PrototypicalNetwork(keras.Sequential(layers))
            learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            save = tfmeta.callbacks.SaveState(folder, 2)
            steps = {"steps_per_epoch": 3, "epochs": until, "verbose": 0}
            learner.fit(mixture.dataset(2, start=save.step), callbacks=[save], **steps)
        return [np.asarray(w) for w in learner.get_weights()]

    for whole, parts in zip(weights(3), weights(1, 3), strict=True):
        np.testing.assert_array_equal(whole, parts)


def test_a_mixture_of_functions() -> None:
    def line(rng: np.random.Generator) -> Any:
        slope = rng.uniform(-1, 1)
        return lambda x: slope * x

    parts = {"lines": FunctionSampler(line, 3, 4), "waves": tfmeta.data.Sinusoids(3, 4)}
    mixture = Mixture(parts)
    steps = [mixture.draw_source(step) for step in range(8)]
    assert {*steps} == {*parts}
    with pytest.raises(TypeError, match=r"must have `shard`\. Received: .* as 'lines'"):
        mixture.shard(0, 2)


def test_a_mixture_of_examples_with_several_inputs() -> None:
    random = np.random.default_rng(0)
    parts = {}
    for i, shots in enumerate((1, 2)):
        inputs = {"x": random.random((40, 3), np.float32), "z": random.random((40, 2), np.float32)}
        data = ClassDataset(inputs, np.repeat(np.arange(4), 10))
        parts[str(i)] = EpisodeSampler(data, 2, shots, 3, seed=i)
    mixture = Mixture(parts)
    spec, _ = mixture.dataset(2).element_spec
    assert spec["support_x"]["z"].shape.as_list() == [2, None, 2]
    for step, (inputs, _) in enumerate(mixture.dataset(2).take(4).as_numpy_iterator()):
        expected, _ = mixture.batch(step, 2)
        for name in ("x", "z"):
            np.testing.assert_array_equal(inputs["query_x"][name], expected["query_x"][name])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"a": 0.5, "b": 0.2, "c": 0.4}, ValueError, r"sum 1\. Received: .*, whose sum is 1\.1"),
        ({"a": 1.5, "b": -0.5, "c": 0}, ValueError, "must be at least 0"),
        ({"a": float("nan"), "b": 0.5, "c": 0.5}, ValueError, "must be at least 0"),
        ({"a": 0.5, "b": 0.5}, ValueError, "Received: none for 'c'"),
        ({"a": 0.5, "b": 0.2, "c": 0.3, "bb": 0}, ValueError, r"'bb'\. Did you mean 'b'\?"),
        ({"a": "half", "b": 0.2, "c": 0.3}, TypeError, "must be numbers"),
        ([0.5, 0.2, 0.3], TypeError, "must be a dict of a number for each source"),
    ],
)
def test_weights_that_are_none(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Mixture(samplers(), weights)


def test_what_does_not_go_together() -> None:
    small, parts = images(8, 0, (5, 5, 1)), samplers()
    with pytest.raises(
        ValueError,
        match=r"'a' with support_x float32 \[6, 6, 1\].*'small' with support_x float32 \[5, 5, 1\]",
    ):
        Mixture({**parts, "small": EpisodeSampler(small, 5, 1, 3)})
    with pytest.raises(ValueError, match=r"'waves' with .*targets float32"):
        Mixture({**parts, "waves": tfmeta.data.Sinusoids(3, 4)})
    unlabelled = EpisodeSampler(images(8, 0), 5, 1, 3, unlabelled=2)
    with pytest.raises(ValueError, match=r"'more' with .*unlabelled_x"):
        Mixture({**parts, "more": unlabelled})
    with pytest.raises(ValueError, match="at least one sampler"):
        Mixture({})
    with pytest.raises(TypeError, match=r"Received: 'd': 3"):
        Mixture({**parts, "d": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="must be a dict of names and samplers"):
        Mixture([*parts.values()])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`source_key` must be a name that inputs do not have yet"):
        Mixture(parts, source_key="support_x")
    with pytest.raises(ValueError, match="`seed` must be at least 0"):
        Mixture(parts, seed=-1)
    with pytest.raises(ValueError, match="`step` must be at least 0"):
        Mixture(parts).batch(-1)


def test_images_in_the_shape_of_others() -> None:
    from PIL import Image

    colour, grey = images(3, 0, (8, 6, 3)), images(3, 1, (6, 6, 1))
    made = tfmeta.data.resize(colour, (5, 4, 1))
    assert (made.example_shape, made.class_names) == ((5, 4, 1), colour.class_names)
    for i in (0, 35):
        alone = Image.fromarray(colour.examples[i]).convert("L")
        alone = alone.resize((4, 5), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(made.examples[i, ..., 0], np.asarray(alone))
    wide = tfmeta.data.resize(grey, (6, 6, 3))
    np.testing.assert_array_equal(wide.examples, np.repeat(grey.examples, 3, -1))
    assert tfmeta.data.resize(grey, (6, 6, 1)) is grey
    turned = tfmeta.data.resize(grey.with_rotations(), (4, 4, 1))
    assert turned.num_classes == 12
    with pytest.raises(ValueError, match="must be a square for classes that are turned"):
        tfmeta.data.resize(grey.with_rotations(), (4, 5, 1))
    with pytest.raises(ValueError, match=r"`shape` must be \(height, width, 1 or 3\)"):
        tfmeta.data.resize(grey, (4, 5, 2))
    vectors = ClassDataset(np.zeros((4, 3), np.float32), [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"uint8 images .* shape \(3,\) and type float32"):
        tfmeta.data.resize(vectors, (4, 4, 1))
