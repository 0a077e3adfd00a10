"""The evaluation's numbers by hand."""

import keras
import numpy as np
import pytest

import tfmeta


class Scripted:
    """A sampler of vectors whose class is their largest entry, with some labels wrong."""

    def __init__(self, wrong):
        self.wrong = wrong

    def batch(self, step, meta_batch_size=1):
        y = np.arange(4, dtype=np.int32)[None]
        x = 10 * np.eye(4, dtype=np.float32)[None]
        targets = y.copy()
        targets[0, : self.wrong[step]] += 1
        targets[0] %= 4
        return {"support_x": x, "support_y": y, "query_x": x}, targets


def nearest():
    identity = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    identity.set_weights([np.eye(4)])
    return tfmeta.PrototypicalNetwork(identity)


def test_mean_and_interval(capsys):
    wrong = [0, 1, 2, 0, 4]
    result = tfmeta.evaluate(nearest(), Scripted(wrong), episodes=5, verbose=False)
    scores = 1 - np.array(wrong) / 4
    np.testing.assert_allclose(result.per_episode, scores)
    assert result.mean == pytest.approx(scores.mean())
    assert result.ci95 == pytest.approx(1.96 * scores.std(ddof=1) / np.sqrt(5))
    assert str(result) == "65.00 % ± 36.67 (95 % CI, 5 episodes)"
    assert capsys.readouterr().out == ""


def test_progress_is_shown(capsys):
    tfmeta.evaluate(nearest(), Scripted([0, 0, 0]), episodes=3)
    assert "3/3" in capsys.readouterr().out


def test_regression_is_scored_by_squared_error():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.zeros((1, 1)), np.zeros(1)])

    class Zeros:
        def batch(self, step, meta_batch_size=1):
            x, y = np.ones((1, 2, 1), np.float32), np.zeros((1, 2, 1), np.float32)
            return {"support_x": x, "support_y": y, "query_x": x}, y + 2 + step

    learner = tfmeta.MAML(model, 0.1)
    learner.compile("sgd", "mse")
    result = tfmeta.evaluate(learner, Zeros(), episodes=2, verbose=False)
    np.testing.assert_allclose(result.per_episode, [4, 9])
    assert str(result) == "6.5000 ± 4.9000 (95 % CI, 2 episodes, mean squared error)"


def test_one_episode_has_no_interval():
    assert np.isnan(tfmeta.evaluate(nearest(), Scripted([0]), 1, verbose=False).ci95)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`episodes` must be at least 1.*episodes=0"):
        tfmeta.evaluate(nearest(), Scripted([]), episodes=0)
    with pytest.raises(TypeError, match=r"`learner` must be a tfmeta.MetaLearner"):
        tfmeta.evaluate(tfmeta.models.mlp((4,), 4), Scripted([]))


def test_more_ways_than_outputs_is_said_first():
    learner = tfmeta.MAML(tfmeta.models.mlp((4,), 3), 0.1)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"model has 3 outputs, and `ways`"):
        tfmeta.evaluate(learner, Scripted([0]), episodes=1)


def test_predictions_that_are_not_finite_are_reported():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = tfmeta.MAML(tfmeta.models.mlp((4,), 4), 1e38, 1)
    learner.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"finite values.*episode 0"):
        tfmeta.evaluate(learner, Scripted([0]), episodes=1, verbose=False)
    learner = tfmeta.MAML(tfmeta.models.mlp((4,), 4), 1e38, 3)
    learner.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"loss must be finite.*inner step \d.* episode 0$"):
        tfmeta.evaluate(learner, Scripted([0]), episodes=1, verbose=False)


def test_what_cannot_be_scored():
    with pytest.raises(TypeError, match=r"`sampler` must be a sampler"):
        tfmeta.evaluate(nearest(), [1, 2])
    with pytest.raises(TypeError, match=r"`episodes` must be an integer.*'2'"):
        tfmeta.evaluate(nearest(), Scripted([0]), episodes="2")
    binary = tfmeta.MAML(tfmeta.models.mlp((4,), 1), 0.1)
    binary.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))

    class TwoWays:
        def batch(self, step, meta_batch_size=1):
            x, y = np.ones((1, 2, 4), np.float32), np.array([[0, 1]])
            return {"support_x": x, "support_y": y, "query_x": x}, y

    with pytest.raises(ValueError, match=r"two classes or more. Received: shape=\(1, 2, 1\)"):
        tfmeta.evaluate(binary, TwoWays(), episodes=1, verbose=False)


class Void(Scripted):
    """The same with the first label one that the loss leaves out."""

    def batch(self, step, meta_batch_size=1):
        inputs, targets = super().batch(step, meta_batch_size)
        targets[0, 0] = 255
        return inputs, targets


def without_void():
    learner = nearest()
    learner.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    )
    return learner


def test_labels_that_the_loss_leaves_out_are_no_mistakes():
    learner = without_void()
    # Of four labels the first is void, and then one or two are wrong.
    result = tfmeta.evaluate(learner, Void([2, 3]), episodes=2, verbose=False)
    np.testing.assert_allclose(result.per_episode, [2 / 3, 1 / 3])


class Counted:
    """A sampler that notes which steps were drawn, and of how many tasks."""

    def __init__(self, sampler):
        self.sampler, self.steps = sampler, []

    def batch(self, step, meta_batch_size=1):
        self.steps.append((step, meta_batch_size))
        return self.sampler.batch(step, meta_batch_size)


def vectors(**options):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 4))
    x = np.repeat(centres, 9, 0) + rng.normal(size=(180, 4))
    dataset = tfmeta.data.ClassDataset(x.astype(np.float32), np.repeat(np.arange(20), 9))
    return Counted(
        tfmeta.data.EpisodeSampler(dataset, **{"ways": 3, "shots": 2, "queries": 4, **options})
    )


def learners():
    maml = tfmeta.MAML(tfmeta.models.mlp((4,), 5), 0.1, 2)
    turn = tfmeta.Reptile(tfmeta.models.mlp((4,), 5), 0.1, 2)
    for learner in (maml, turn):
        learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return {"packed": maml, "in turn": turn, "never compiled": nearest()}


@pytest.mark.parametrize("how", ["packed", "in turn", "never compiled"])
@pytest.mark.parametrize("sizes", ["one size", "several", "padded"])
def test_episodes_at_once_score_as_one_by_one(how, sizes):
    episodes = 41  # the last call has one episode less than the first
    ways = {"one size": 3, "several": 3, "padded": (2, 5)}[sizes]
    sampler, learner = vectors(ways=ways), learners()[how]
    if sizes == "several":
        batch = sampler.sampler.batch

        def fewer(step, meta_batch_size=1):
            inputs, targets = batch(step, meta_batch_size)
            number = 3 + step % 2
            return {**inputs, "query_x": inputs["query_x"][:, :number]}, targets[:, :number]

        sampler.sampler = type("Fewer", (), {"batch": staticmethod(fewer)})
    result = tfmeta.evaluate(learner, sampler, episodes, verbose=False)
    assert sampler.steps == [(e, 1) for e in range(episodes)]
    expected = []
    for e in range(episodes):
        inputs, targets = sampler.batch(e)
        right = learner.predict_on_batch(inputs).argmax(-1) == targets
        expected.append(right[inputs.get("query_mask", np.ones(right.shape, bool))].mean())
    np.testing.assert_array_equal(result.per_episode, expected)


def test_all_calls_are_of_one_size():
    learner = learners()["packed"]
    tfmeta.evaluate(learner, vectors(), 70, verbose=False)
    sizes, compute = [], learner.predict_with_notes
    learner.predict_with_notes = lambda x: sizes.append(len(x["query_x"])) or compute(x)
    tfmeta.evaluate(learner, vectors(), 70, verbose=False)
    assert sizes == [24, 24, 24]  # the last two are computed and left out


def sequences():
    """Two-way tasks of sequences, of which the second half is masked and its labels are wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 4, 3)).astype(np.float32)
    x[:, :, 2:] = 0
    y = np.zeros((1, 6, 4), np.int32)
    return x, y


def test_masked_time_steps_do_not_count():
    model = keras.Sequential(
        [keras.Input((4, 3)), keras.layers.Masking(), keras.layers.Dense(2, use_bias=False)]
    )
    x, y = sequences()
    learner = tfmeta.MAML(model, 1e-9)
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs = {"support_x": x, "support_y": y, "query_x": x}
    targets = learner.predict_on_batch(inputs).argmax(-1)
    targets[:, :, 2:] = 1 - targets[:, :, 2:]
    targets[0, 0, 0] = 1 - targets[0, 0, 0]
    sampler = sampler_of(inputs, targets)
    result = tfmeta.evaluate(learner, sampler, 3, verbose=False)
    np.testing.assert_allclose(result.per_episode, 11 / 12)
    assert tfmeta.uncertainty(learner, sampler, 2, verbose=False).accuracy == pytest.approx(11 / 12)
    # And in regression: of each step that counts, the error is 4.
    learner = tfmeta.MAML(model, 1e-9)
    learner.compile(loss="mse")
    inputs = {"support_x": x, "support_y": np.zeros((1, 6, 4, 2), np.float32), "query_x": x}
    targets = learner.predict_on_batch(inputs) + 2
    targets[:, :, 2:] = 1e6
    result = tfmeta.evaluate(learner, sampler_of(inputs, targets), 2, verbose=False)
    np.testing.assert_allclose(result.per_episode, 4, rtol=1e-5)


def sampler_of(inputs, targets):
    return type("Fixed", (), {"batch": staticmethod(lambda step, n=1: (inputs, targets))})


def test_uncertainty_leaves_out_what_the_loss_leaves_out():
    learner = without_void()
    result = tfmeta.uncertainty(learner, Void([2, 3]), episodes=2, verbose=False)
    assert len(result.labels) == 6
    assert result.accuracy == pytest.approx(1 / 2)


def test_several_outputs_are_not_scored():
    x = keras.Input((4,))
    model = keras.Model(x, [keras.layers.Dense(4)(x), keras.layers.Dense(4)(x)])
    learner = tfmeta.MAML(model, 0.1)
    learner.compile(loss=["mse", "mse"])
    x, y = np.ones((1, 2, 4), np.float32), np.ones((1, 2, 4), np.float32)
    inputs = {"support_x": x, "support_y": [y, y], "query_x": x}
    with pytest.raises(ValueError, match=r"one output to be scored here.*2 outputs"):
        tfmeta.evaluate(learner, sampler_of(inputs, [y, y]), 1, verbose=False)
