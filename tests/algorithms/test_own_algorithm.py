"""A user's own algorithm supplies two functions for one task; the rest is inherited."""

import keras
import numpy as np

import tfmeta


class NearestMean(tfmeta.MetaLearner):
    """The example of `MetaLearner`'s docstring."""

    def adapt_task(self, support_x, support_y, *, training):
        z = self.model(support_x, training=training)
        return tfmeta.ops.prototypes(z[None], support_y[None], ways=3)

    def predict_task(self, state, query_x, *, training):
        z = self.model(query_x, training=training)
        return -tfmeta.ops.squared_euclidean(z[None], state)[0]


def test_two_functions_make_a_learner():
    rng = np.random.default_rng(0)
    learner = NearestMean(tfmeta.models.mlp((5,), 4))
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.tile(np.arange(3, dtype=np.int32), (2, 1))
    x, q = rng.normal(size=(2, 2, 3, 5)).astype("float32")
    inputs = {"support_x": x, "support_y": y, "query_x": q}
    learner.train_on_batch(inputs, y)
    adapted = learner.adapt(x[0], y[0])
    expected = learner.predict_on_batch(inputs)[0]
    np.testing.assert_allclose(adapted.predict(q[0], verbose=0), expected, atol=1e-6)
    learner.train_on_batch(inputs, y)
    np.testing.assert_allclose(adapted.predict(q[0], verbose=0), expected, atol=1e-6)
