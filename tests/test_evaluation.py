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


def test_labels_that_the_loss_leaves_out_are_no_mistakes():
    class Void(Scripted):
        def batch(self, step, meta_batch_size=1):
            inputs, targets = super().batch(step, meta_batch_size)
            targets[0, 0] = 255
            return inputs, targets

    learner = nearest()
    learner.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    )
    # Of four labels the first is void, and then one or two are wrong.
    result = tfmeta.evaluate(learner, Void([2, 3]), episodes=2, verbose=False)
    np.testing.assert_allclose(result.per_episode, [2 / 3, 1 / 3])
