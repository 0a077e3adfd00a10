"""What does the user want? Intents of sentences, from one or five examples of each.

A network that others have trained turns each sentence into a vector, once; few-shot learning is
then a question of what to put on these vectors. Four heads, and one on a small network that is
trained on top, are asked on the same episodes as tf-idf with logistic regression, on intents of
domains that nothing was chosen by. Then one of them learns three intents, answers new sentences,
says "unknown" where it should, and is exported. Takes about two minutes on two cores; needs
`pip install 'tfmeta[text]'` and the two files of CLINC150, `data_full.json` and `domains.json`:
`python examples/text_intents.py FOLDER`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import wordllama
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import tfmeta

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="of data_full.json and domains.json")
parser.add_argument("--episodes", type=int, default=600, help="of the test")
parser.add_argument("--json", type=Path, help="a file for the scores")
arguments = parser.parse_args()
print("Takes about two minutes on two cores.", flush=True)
WAYS, QUERIES = 5, 15

# ## Sentences
#
# CLINC150 (Larson et al. 2019): ten domains of 15 intents with 150 sentences each. In alphabetical
# order the first six domains are for training, two for validation, the last two for the test.

data = json.loads((arguments.folder / "data_full.json").read_text(encoding="utf-8"))
domains = json.loads((arguments.folder / "domains.json").read_text(encoding="utf-8"))
pairs = [pair for part in ("train", "val", "test") for pair in data[part]]
texts, intents = [text for text, _ in pairs], [intent for _, intent in pairs]
names = sorted(domains)
parts = [
    [intent.replace(" ", "_") for name in some for intent in domains[name]]
    for some in (names[:6], names[6:8], names[8:])
]

# ## Vectors
#
# WordLlama averages a vector for each token; its package brings the weights. 22,500 sentences take
# a second or two, and are never looked at again.

words = wordllama.WordLlama.load(
    dim=256, cache_dir=Path(wordllama.__file__).parent, disable_download=True
)


def embed(sentences):
    return np.asarray(words.embed(list(sentences), norm=True), np.float32)


vectors = tfmeta.data.ClassDataset(embed(texts), intents)
train, validation, test = (vectors.select(part) for part in parts)
sentences = tfmeta.data.ClassDataset(texts, intents)  # the same classes: for tf-idf


def sampler(dataset, shots, seed, ways=WAYS):
    return tfmeta.data.EpisodeSampler(dataset, ways, shots, QUERIES, seed=seed)


# ## Learners
#
# Four heads take the vectors as they are: their encoder does nothing. SimpleShot takes away the
# mean of the training vectors. LabelPropagation answers all queries of an episode together, which
# is another task: it must be given them all at once, and as many of each class. The last one has
# a small network in front, trained as an ordinary classifier of the 90 training intents; the epoch
# that is best on validation episodes is kept.


def as_it_is():
    return keras.Sequential([keras.Input((256,)), keras.layers.Identity()])


def trained():
    """Return a network that begins as a copy of its input."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((256,))
    x = keras.layers.Dense(512, "relu")(keras.layers.Rescaling(4.0)(inputs))
    x = keras.layers.Dense(256, kernel_initializer="zeros")(keras.layers.Dropout(0.3)(x))
    network = keras.Model(inputs, keras.layers.Add()([inputs, x]))
    tfmeta.pretrain(
        network,
        train,
        epochs=5,
        optimizer=keras.optimizers.Adam(1e-3),
        validation=sampler(validation, 1, seed=0),
        verbose=2,
    )
    return network


def compiled(learner):
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return learner


centred = compiled(tfmeta.SimpleShot(as_it_is()))
centred.fit(sampler(train, 5, seed=0).dataset(8), steps_per_epoch=50, verbose=0)
learners = {
    "SimpleShot": centred,
    "LogisticRegression": compiled(tfmeta.LogisticRegression(as_it_is())),
    "R2D2": compiled(tfmeta.R2D2(as_it_is())),
    "LabelPropagation (all queries together)": compiled(tfmeta.LabelPropagation(as_it_is())),
    "SimpleShot on a trained network": compiled(tfmeta.SimpleShot(trained(), centre=False)),
}

# The baseline knows the words of all sentences and how rare they are, but no other language. It is
# fitted to each support set; words that are not in it have no weight, and are left out.

tf_idf = TfidfVectorizer().fit(texts)
baseline = (
    lambda sentences: tf_idf.transform(sentences).toarray().astype(np.float32),
    make_pipeline(VarianceThreshold(), LogisticRegression(C=10.0, max_iter=1000)),
)

# ## Scores
#
# From two data sets with the same classes a seed draws the same episodes, here of vectors and of
# sentences, so that scores can be put into one table, with paired differences.


def compared(part, shots, episodes, seed):
    drawn = (sampler(data.select(part), shots, seed) for data in (vectors, sentences))
    ours, theirs = (
        tfmeta.compare(methods, episode, episodes, verbose=False)
        for methods, episode in zip((learners, {"tf-idf": baseline}), drawn, strict=True)
    )
    scores = {name: ours.per_episode[name] for name in learners}
    return tfmeta.Comparison({**scores, **theirs.per_episode}, "accuracy")


chosen = compared(parts[1], 1, min(200, arguments.episodes), seed=0)
print(f"\nValidation, {WAYS} intents, one sentence of each:\n{chosen}", flush=True)
results = {}
for shots in (1, 5):
    results[shots] = compared(parts[2], shots, arguments.episodes, seed=1)
    print(f"\nTest, {WAYS} new intents, sentences of each: {shots}\n{results[shots]}", flush=True)

# ## Three intents of one's own
#
# What a learner returns is a Keras model of vectors. A threshold says which answers are none: it is
# fitted on validation intents, as many as are shown here, so that of sentences of other intents one
# in twenty is answered.

learner = learners["SimpleShot"]
mine = {
    "opening hours": [
        "when do you open",
        "are you open on sundays",
        "how late can i come in",
        "what are your hours on friday",
        "is the shop closed today",
    ],
    "where is my parcel": [
        "my order has not arrived yet",
        "track my package",
        "when will it be delivered",
        "where is the parcel i ordered last week",
        "the delivery is late",
    ],
    "send it back": [
        "i want to return these shoes",
        "how do i send an item back",
        "can i get my money back",
        "this does not fit, i would like a refund",
        "return label please",
    ],
}
mixed = sampler(validation, 5, seed=2, ways=2 * len(mine))
unknown = tfmeta.unknown.fit(
    learner,
    mixed,
    min(300, arguments.episodes),
    support_ways=len(mine),
    false_acceptance=0.05,
    verbose=False,
)
support = embed(sentence for examples in mine.values() for sentence in examples)
labels = np.repeat(np.arange(len(mine)), [len(examples) for examples in mine.values()])
adapted = learner.adapt(support, labels)
adapted.export("my_intents", verbose=False)  # loads in bare TensorFlow, and takes vectors
adapted.save("my_intents.keras")

asked = [
    "do you close early on christmas eve",
    "i still have not received my order",
    "the colour is wrong, can i give it back",
    "what is the capital of norway",
]
predictions = adapted.predict(embed(asked), verbose=0)
print("\nSentences that it has not seen:")
for sentence, scores, refused in zip(asked, predictions, unknown(predictions), strict=True):
    answer = "unknown" if refused else list(mine)[scores.argmax()]
    print(f"  {sentence:42} {answer}")

# ## What nobody foresaw
#
# CLINC150 also has 1,000 sentences that belong to none of its intents. Does a threshold that was
# fitted on other intents hold for them?

inputs, targets = sampler(test, 5, seed=3, ways=len(mine)).batch(0, min(100, arguments.episodes))
outside = embed(text for text, _ in data["oos_test"])
answered, right = [], []
for x, y, queries, classes in zip(
    *(inputs[name] for name in ("support_x", "support_y", "query_x")), targets, strict=True
):
    model = learner.adapt(x, y)
    answered.append(np.mean(~unknown(model(outside).numpy())))
    logits = model(queries).numpy()
    right.append(np.mean(~unknown(logits) & (logits.argmax(axis=1) == classes)))
print(f"\nSentences of no intent that are answered: {np.mean(answered):.1%}")
print(f"Sentences of three new intents, five of each, answered and right: {np.mean(right):.1%}")

results[1].plot("text_intents.png", f"{WAYS} new intents, one sentence of each")
print("The picture is text_intents.png.")
if arguments.json:
    rows = [
        {
            "method": name,
            "shots": shots,
            "accuracy": 100 * scores.mean(),
            "ci95": 100 * tfmeta.Evaluation(scores, "accuracy").ci95,
            "difference": 100 * (difference := result.difference(name, "tf-idf")).mean,
            "difference_ci95": 100 * difference.ci95,
        }
        for shots, result in results.items()
        for name, scores in result.per_episode.items()
    ]
    unknowns = {"answered": 100 * np.mean(answered), "right": 100 * np.mean(right)}
    arguments.json.write_text(json.dumps({"rows": rows, "unknown": unknowns}, indent=1) + "\n")
