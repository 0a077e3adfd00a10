"""Under XLA, too, a loss that is not finite is said, and the weights from before it are kept."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import tfmeta
from tests.test_states import SAMPLER, VALIDATION


def learner(jit_compile: bool = True) -> Any:
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input([4, 4, 1]), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    made = tfmeta.FOMAML(network, inner_learning_rate=0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], jit_compile=jit_compile)
    return made


class Spoil(keras.callbacks.Callback):
    """Makes a weight infinite before a step, and keeps those at the end of each epoch."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.ends = step, []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            self.model.trainable_variables[0].assign(np.full([16, 3], np.inf))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ends.append(values(self.model))


def values(model: Any) -> list[Any]:
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize(("step", "epoch"), [(4, 2), (1, 1)])
def test_a_loss_that_is_not_finite_is_said_at_the_end_of_the_epoch(step: int, epoch: int) -> None:
    made, spoil = learner(), Spoil(step)
    with pytest.raises(
        ValueError, match=rf"`loss` must be finite\. Received: loss=nan in epoch {epoch}\. Under"
    ):
        made.fit(SAMPLER.dataset(2), steps_per_epoch=3, epochs=4, callbacks=[spoil], verbose=0)
    assert len(spoil.ends) == epoch - 1  # what others would have saved of it is not
    assert all(np.isfinite(value).all() for value in values(made))
    for now, before in zip(values(made), spoil.ends[-1] if spoil.ends else [], strict=False):
        np.testing.assert_array_equal(now, before)
    # And with it training goes on.
    made.fit(SAMPLER.dataset(2), steps_per_epoch=3, verbose=0)


def test_a_loss_of_validation_is_said_too() -> None:
    class SpoilLast(keras.callbacks.Callback):
        def on_test_begin(self, logs: Any = None) -> None:
            self.model.trainable_variables[0].assign(np.full([16, 3], np.inf))

    with pytest.raises(ValueError, match=r"`val_loss` must be finite\. Received: val_loss=nan"):
        learner().fit(
            SAMPLER.dataset(2),
            steps_per_epoch=2,
            validation_data=VALIDATION.dataset(1).take(2),
            callbacks=[SpoilLast()],
            verbose=0,
        )


def test_keras_own_callback_has_its_way_and_without_xla_the_step_is_named() -> None:
    made = learner()
    history = made.fit(
        SAMPLER.dataset(2),
        steps_per_epoch=3,
        epochs=3,
        callbacks=[Spoil(1), keras.callbacks.TerminateOnNaN()],
        verbose=0,
    )
    assert len(history.epoch) == 1
    with pytest.raises(ValueError, match="The support loss must be finite"):
        learner(jit_compile=False).fit(
            SAMPLER.dataset(2), steps_per_epoch=3, callbacks=[Spoil(1)], verbose=0
        )


@pytest.mark.parametrize("name", ["PrototypicalNetwork", "SimpleShot"])
def test_where_no_step_looks_an_epoch_does(name: str) -> None:
    """A Prototypical Network has no inner loop that would stumble over such weights."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    made = getattr(tfmeta, name)(keras.Sequential([keras.Input([4, 4, 1]), *layers]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile("adam", loss, jit_compile=False)
    spoil = Spoil(4)
    with pytest.raises(ValueError, match=r"loss=nan in epoch 2\. The weights are those from"):
        made.fit(SAMPLER.dataset(2), steps_per_epoch=3, epochs=4, callbacks=[spoil], verbose=0)
    for now, before in zip(values(made), spoil.ends[-1], strict=True):
        np.testing.assert_array_equal(now, before)


def test_with_a_list_of_callbacks_and_with_states(tmp_path: Any) -> None:
    made = learner()
    callbacks = keras.callbacks.CallbackList([Spoil(1)], add_history=True, model=made)
    with pytest.raises(ValueError, match=r"`loss` must be finite"):
        made.fit(SAMPLER.dataset(2), steps_per_epoch=3, callbacks=callbacks, verbose=0)
    made = learner()
    save = tfmeta.callbacks.SaveState(tmp_path, every=1)
    with pytest.raises(ValueError, match=r"`loss` must be finite"):
        made.fit(
            SAMPLER.dataset(2),
            steps_per_epoch=3,
            epochs=2,
            callbacks=[Spoil(4), save],
            verbose=0,
        )
    assert save.step == 4
    again = learner()
    save = tfmeta.callbacks.SaveState(tmp_path, every=1)
    again.fit(
        SAMPLER.dataset(2, start=save.step),
        steps_per_epoch=3,
        epochs=2,
        callbacks=[save],
        verbose=0,
    )
    assert int(again.optimizer.iterations) == 6
