"""Heads that answer queries together, and learn from examples without labels, against NumPy."""

import logging

import keras
import numpy as np
import pytest
import sklearn.semi_supervised
import tensorflow as tf

import tfmeta
from tests import learners
from tests.algorithms import test_heads

WAYS, SIZE, TOGETHER = 4, 7, 15
RNG = np.random.default_rng(3)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def identity():
    return keras.Sequential([keras.Input((SIZE,)), keras.layers.Identity()])


def skewed():
    """Tasks whose queries are of some classes more than of others: real examples of each.

    Classes, shots, queries and unlabelled examples differ in number from task to task.
    """
    tasks = []
    for ways, shots, queries, unlabelled in ((4, 2, 15, 5), (3, 1, 9, 0), (4, 1, 12, 8)):
        centres = RNG.normal(size=(ways, SIZE))
        of_queries = RNG.choice(ways, queries, p=RNG.dirichlet(np.full(ways, 2.0)))
        labels = np.repeat(np.arange(ways), shots)
        others = RNG.choice(ways, unlabelled)
        parts = [centres[y] + 0.7 * RNG.normal(size=(len(y), SIZE)) for y in (labels, of_queries)]
        more = centres[others] + 0.7 * RNG.normal(size=(unlabelled, SIZE))
        tasks.append((parts[0], labels, parts[1], more))
    return tasks


TASKS = skewed()


def filled(parts, value):
    whole = np.full((len(parts), max(map(len, parts)), *parts[0].shape[1:]), value, parts[0].dtype)
    for row, part in zip(whole, parts, strict=True):
        row[: len(part)] = part
    return whole


def episodes(unlabelled=False):
    """All tasks in one meta-batch, with NaN where there is nothing."""
    x, y, q, u = zip(*TASKS, strict=True)
    there = [filled([np.ones(len(part), bool) for part in parts], False) for parts in (x, q, u)]
    inputs = {
        "support_x": filled(x, np.nan),
        "support_y": filled([labels.astype("int32") for labels in y], -1),
        "query_x": filled(q, np.nan),
        "support_mask": there[0],
        "query_mask": there[1],
    }
    more = {"unlabelled_x": filled(u, np.nan), "unlabelled_mask": there[2]}
    return {**inputs, **more} if unlabelled else inputs


def assert_as(learner, twin, *, unlabelled=False, rtol=1e-9):
    """A learner says of each task what a function of its real examples alone does."""
    logits = learner.predict_on_batch(episodes(unlabelled))
    for found, (x, y, q, u) in zip(logits, TASKS, strict=True):
        expected = twin(x, y, q, u if unlabelled else u[:0])
        ways = y.max() + 1
        np.testing.assert_allclose(found[: len(q), :ways], expected, rtol=rtol, atol=rtol)
        assert (found[: len(q), ways:] < -1e30).all()  # classes that the task does not have


def squares(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def means_of(x, y):
    return np.stack([x[y == k].mean(0) for k in range(y.max() + 1)])


@pytest.mark.parametrize("distractor_cluster", [False, True])
@pytest.mark.parametrize(("transductive", "unlabelled"), [(True, False), (False, True)])
def test_soft_k_means(float64, transductive, unlabelled, distractor_cluster):
    steps = 3
    learner = tfmeta.SoftKMeans(
        identity(),
        steps,
        transductive=transductive,
        distractor_cluster=distractor_cluster,
        length_scale=1.7,
        temperature=0.8,
    )
    # Keras rounds what weights begin as to single precision.
    t, r = float(learner.temperature), np.exp(float(learner.log_length_scale))

    def twin(x, y, q, u):
        counts = np.bincount(y)
        start = means = means_of(x, y)
        pool = q if transductive else u
        for _ in range(steps):
            logits = -t * squares(pool, means)
            if distractor_cluster:
                origin = -t * (pool**2).sum(-1) / r**2 - np.log(r)
                logits = np.concatenate([logits, origin[:, None]], 1)
            shares = softmax(logits)[:, : len(means)] if len(pool) else np.zeros((0, len(means)))
            means = counts[:, None] * start + shares.T @ pool
            means /= (counts + shares.sum(0))[:, None]
        return -t * squares(q, means)

    assert_as(learner, twin, unlabelled=unlabelled)


def test_soft_k_means_of_both_takes_the_queries_after_the_others(float64):
    """One step with each, by the formula: shares so far count as examples."""

    def twin(x, y, q, u):
        means, counts = means_of(x, y), np.bincount(y)
        for pool in (u, q):
            shares = softmax(-squares(pool, means)) if len(pool) else np.zeros((0, len(means)))
            total = counts + shares.sum(0)
            means = (counts[:, None] * means + shares.T @ pool) / total[:, None]
            counts = total
        return -squares(q, means)

    assert_as(tfmeta.SoftKMeans(identity(), transductive=True), twin, unlabelled=True)


def test_without_unlabelled_examples_it_is_a_prototypical_network(float64):
    theirs = tfmeta.PrototypicalNetwork(identity()).predict_on_batch(episodes())
    found = tfmeta.SoftKMeans(identity(), 5).predict_on_batch(episodes())
    np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("neighbors", "alpha", "scale"), [(3, 0.9, 0.5), (20, 0.99, 1.0)])
def test_label_propagation(float64, neighbors, alpha, scale, symmetric):
    """The same spreading as scikit-learn's, on the graph of the formula."""
    learner = tfmeta.LabelPropagation(identity(), neighbors, alpha, scale, symmetric=symmetric)
    scale = np.exp(float(learner.log_length_scale))

    def graph(nodes):
        distances = squares(nodes, nodes)
        ratio = distances / distances[~np.eye(len(nodes), dtype=bool)].mean()
        weights = np.exp(-ratio / (2 * scale**2))
        np.fill_diagonal(weights, 0)
        near = np.zeros(weights.shape, bool)
        for i, row in enumerate(weights):
            near[i, np.argsort(-row)[:neighbors]] = True
        return weights * (near | near.T)

    def twin(x, y, q, u):
        nodes, one_hot = np.concatenate([x, q]), np.eye(y.max() + 1)[y]
        weights = graph(nodes)
        degrees = weights.sum(1)
        root = np.sqrt(degrees)
        spread = weights / root[:, None] / root
        labels = np.concatenate([one_hot, np.zeros((len(q), one_hot.shape[1]))])
        found = np.linalg.solve(np.eye(len(nodes)) - alpha * spread, labels)
        if not symmetric:
            walks = np.eye(len(nodes)) - alpha * weights / degrees
            return np.linalg.solve(walks, labels)[len(x) :]
        theirs = sklearn.semi_supervised.LabelSpreading(
            lambda a, _: graph(a), alpha=alpha, max_iter=100_000, tol=1e-13
        )
        theirs.fit(nodes, np.concatenate([y, np.full(len(q), -1)]))
        shares = found / found.sum(1, keepdims=True)
        np.testing.assert_allclose(shares, theirs.label_distributions_, atol=1e-8)
        return found[len(x) :]

    assert_as(learner, twin, rtol=1e-8)


def test_label_propagation_far_from_the_origin_and_of_any_size():
    """Neither where embeddings lie nor how large they are makes a difference."""
    learner = tfmeta.LabelPropagation(test_heads.identity(), 5, length_scale=0.4)
    expected = learner.predict_on_batch(test_heads.INPUTS)
    for change in (lambda x: 1000 * x, lambda x: x + 50):
        inputs = {k: change(x) if x.ndim == 3 else x for k, x in test_heads.INPUTS.items()}
        np.testing.assert_allclose(learner.predict_on_batch(inputs), expected, rtol=2e-3)
    # Nor may one example that is far from all others, nor may all be the same.
    inputs = {k: x.copy() for k, x in test_heads.INPUTS.items()}
    inputs["query_x"][:, 0] = 1e4
    assert np.isfinite(learner.predict_on_batch(inputs)).all()
    inputs = {k: 0 * x if x.ndim == 3 else x for k, x in inputs.items()}
    assert np.isfinite(learner.predict_on_batch(inputs)).all()


@pytest.mark.parametrize("alpha", [1.0, 2.0, 5.0])
def test_tim(float64, alpha):
    """The gradient by hand, and Adam as published."""
    t, steps, rate, weights = 9.0, 30, 0.01, (0.7, 1.3, 0.9)

    def slope_of_entropy(p):
        if alpha == 1:
            return -np.log(p) - 1
        return -alpha / (alpha - 1) * p ** (alpha - 1)

    def twin(x, y, q, u):
        x, q = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, q))
        w, one_hot = means_of(x, y), np.eye(y.max() + 1)[y]
        first = second = np.zeros_like(w)
        for i in range(1, steps + 1):
            p = softmax(-t / 2 * squares(q, w))
            to_p = weights[1] * slope_of_entropy(p) - weights[2] * slope_of_entropy(p.mean(0))
            to_logits = p * (to_p - (p * to_p).sum(1, keepdims=True)) / len(q)
            of_support = weights[0] * (softmax(-t / 2 * squares(x, w)) - one_hot) / len(x)
            slope = sum(
                t * (s.T @ z - s.sum(0)[:, None] * w) for s, z in ((to_logits, q), (of_support, x))
            )
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            size = rate * np.sqrt(1 - 0.999**i) / (1 - 0.9**i)
            w = w - size * first / (np.sqrt(second) + 1e-7)
        return -t / 2 * squares(q, w)

    learner = tfmeta.TIM(
        identity(),
        alpha,
        steps,
        rate,
        t,
        support_weight=weights[0],
        conditional_weight=weights[1],
        marginal_weight=weights[2],
    )
    assert_as(learner, twin, rtol=1e-7)


TRANSDUCTIVE = ["SoftKMeans-transductive", "LabelPropagation", "TIM"]


@pytest.mark.parametrize("name", [*TRANSDUCTIVE, "SoftKMeans", "PrototypicalNetwork"])
def test_each_says_whether_answers_depend_on_one_another(name, tmp_path, caplog):
    learner = test_heads.compiled(test_heads.HEADS[name](test_heads.identity()))
    inputs = test_heads.INPUTS
    all_of_them = learner.predict_on_batch(inputs)
    alone = learner.predict_on_batch({**inputs, "query_x": inputs["query_x"][:, :3]})
    alike = np.allclose(alone, all_of_them[:, :3], rtol=1e-5, atol=1e-5)
    assert learner.transductive == (not alike) == (name in TRANSDUCTIVE)
    data = tf.data.Dataset.from_tensors((inputs, test_heads.TARGETS))
    said = "transductive: the queries of an episode are answered together"
    result = tfmeta.evaluate(learner, data, 4, verbose=False)
    assert (said in str(result)) == result.transductive == learner.transductive
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    with caplog.at_level(logging.WARNING):
        tfmeta.export.saved_model(adapted, tmp_path / "adapted")
    assert ("depend on which queries are asked" in caplog.text) == learner.transductive


@pytest.mark.parametrize("transductive", [False, True])
def test_adapted_with_unlabelled_examples(transductive, tmp_path):
    learner = tfmeta.SoftKMeans(identity(), 2, transductive=transductive)
    x, y, q, u = (part.astype("float32") for part in TASKS[0])
    y = y.astype("int32")
    inputs = {"support_x": x, "support_y": y, "query_x": q, "unlabelled_x": u}
    expected = learner.predict_on_batch({k: part[None] for k, part in inputs.items()})[0]
    without = learner.adapt(x, y)(q)
    assert not np.allclose(without, expected, atol=0.01)
    adapted = learner.adapt(x, y, u)
    np.testing.assert_allclose(adapted(q), expected, atol=1e-4)
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    np.testing.assert_allclose(loaded(q), expected, atol=1e-4)
    u[0, 0] = np.nan
    with pytest.raises(ValueError, match="`unlabelled_x` must be finite"):
        learner.adapt(x, y, u)
    with pytest.raises(ValueError, match=r"`unlabelled_x` must have the shape \[n, 7\]"):
        learner.adapt(x, y, q[:, :5])


def test_it_is_trained_on_sampled_episodes_with_distractors():
    """Of one size, and of several; the length scale of distractors is learnt."""
    labels = np.arange(240) // 20
    vectors = np.eye(12)[labels] + 0.3 * RNG.normal(size=(240, 12))
    classes = tfmeta.data.ClassDataset(vectors.astype("float32"), labels)
    encoder = keras.Sequential([keras.Input((12,)), keras.layers.Dense(6)])
    learner = tfmeta.SoftKMeans(encoder, distractor_cluster=True, length_scale=3.0)
    learner.compile(keras.optimizers.Adam(0.01), LOSS)
    for ways in (3, (2, 4)):
        sampler = tfmeta.data.EpisodeSampler(classes, ways, 1, 4, unlabelled=5, distractors=3)
        before = float(learner.log_length_scale)
        history = learner.fit(sampler, batch_size=4, steps_per_epoch=15, epochs=2, verbose=0)
        assert history.history["loss"][1] < history.history["loss"][0]
        assert float(learner.log_length_scale) != before
        assert tfmeta.evaluate(learner, sampler, 20, verbose=False).mean > 0.6


TAKE_NONE = {
    **learners.LEARNERS,
    **{
        name: lambda make=make: make(learners.network(None))
        for name, make in test_heads.HEADS.items()
        if not name.startswith("SoftKMeans")
    },
}


def test_every_other_learner_refuses_them():
    inputs, _ = learners.episodes()
    more = {**inputs, "unlabelled_x": inputs["query_x"]}
    for make in TAKE_NONE.values():
        learner = make()
        says = rf"`unlabelled_x` is taken by tfmeta.SoftKMeans.*{type(learner).__name__} takes none"
        for call in (learner.predict_on_batch, learner):
            with pytest.raises(ValueError, match=says):
                call(more)
        with pytest.raises(ValueError, match=says):
            learner.adapt(inputs["support_x"][0], inputs["support_y"][0], inputs["query_x"][0])
    # All but one of the package's.
    public = {x for x in vars(tfmeta).values() if isinstance(x, type)}
    known = {x for x in public if issubclass(x, tfmeta.MetaLearner)} - {tfmeta.MetaLearner}
    assert {x for x in known if x.takes_unlabelled} == {tfmeta.SoftKMeans}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unlabelled_x": np.zeros((3, 8, SIZE), "float32")}, r"float32\[3, 8, 7\].*float64"),
        ({"unlabelled_x": np.zeros((3, 8, SIZE + 1))}, r"\[tasks, u, ...\].*float64\[3, 8, 8\]"),
        ({"unlabelled_x": np.zeros((2, 8, SIZE))}, r"of as many tasks as.*\[2, 8, 7\]"),
        ({"unlabelled_x": np.zeros((3, SIZE))}, r"\[tasks, u, ...\].*\[3, 7\]"),
        ({"unlabelled_mask": None}, "all of 'support_mask' and 'query_mask' and 'unlabelled_mask'"),
        ({"unlabelled_mask": np.ones((3, 7), bool)}, r"`unlabelled_mask` must be bool of shape"),
    ],
)
def test_unlabelled_examples_that_do_not_fit_are_refused(float64, change, message):
    with pytest.raises(ValueError, match=message):
        tfmeta.SoftKMeans(identity()).predict_on_batch({**episodes(True), **change})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: tfmeta.SoftKMeans(e, 0), "`steps` must be at least 1"),
        (lambda e: tfmeta.SoftKMeans(e, length_scale=0.0), "`length_scale` must be positive"),
        (
            lambda e: tfmeta.SoftKMeans(e, distance="cosine", distractor_cluster=True),
            "`distance` must be 'squared_euclidean' where there is a distractor cluster",
        ),
        (lambda e: tfmeta.LabelPropagation(e, 0), "`neighbors` must be at least 1"),
        (lambda e: tfmeta.LabelPropagation(e, alpha=1.0), "`alpha` must be less than 1"),
        (lambda e: tfmeta.LabelPropagation(e, length_scale=-1.0), "`length_scale` must be pos"),
        (lambda e: tfmeta.TIM(e, 0.0), "`alpha` must be positive"),
        (lambda e: tfmeta.TIM(e, steps=0), "`steps` must be at least 1"),
        (lambda e: tfmeta.TIM(e, learning_rate=0.0), "`learning_rate` must be positive"),
        (lambda e: tfmeta.TIM(e, marginal_weight=-1.0), "`marginal_weight` must be positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(identity())
