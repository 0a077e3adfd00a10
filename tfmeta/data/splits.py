"""Which classes of a benchmark are for training, validation and testing, as published.

The assignments are facts, written down here as compactly as they can be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

# fmt: off
# Omniglot. Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching networks for one shot
# learning (NeurIPS 2016). The first 1,200 characters, background before evaluation alphabets and
# each half in order, are for training and validation; so whole alphabets, and a part of Gurmukhi.
VINYALS_VALIDATION = frozenset([
    "Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)",
])
VINYALS_TEST = frozenset([
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)",
    "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
])
VINYALS_GURMUKHI_TEST_FROM = 41  # characters are counted from 0

# Omniglot. Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic
# program induction (Science 2015): train on the background set, test on the evaluation set.
# The paper holds none out for validation: here it is the five alphabets that Vinyals et al. chose,
# which all belong to the background set.
BACKGROUND_CHARACTERS = 964  # they are the first in the data set
EVALUATION = frozenset([
    "Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic",
    "Gurmukhi", "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan",
    "ULOG",
])

# CIFAR-FS. Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form
# solvers (ICLR 2019). The other 64 classes of CIFAR-100 are for training.
CIFAR_FS_VALIDATION = frozenset([
    "beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish", "lamp",
    "maple_tree", "motorcycle", "otter", "sea", "shark", "television", "tractor",
])
CIFAR_FS_TEST = frozenset([
    "baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck", "plain",
    "poppy", "rocket", "rose", "snail", "sweet_pepper", "table", "telephone", "wardrobe",
    "whale", "woman", "worm",
])

# FC100. Oreshkin, Rodríguez, Lacoste: TADAM: Task dependent adaptive metric for improved few-shot
# learning (NeurIPS 2018). Whole superclasses; the other 12 are for training.
FC100_VALIDATION = frozenset([
    "large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates",
    "small_mammals",
])
FC100_TEST = frozenset([
    "aquatic_mammals", "insects", "medium_mammals", "people",
])
# fmt: on


def vinyals(alphabet: str, character: int) -> str:
    """Returns `"train"`, `"validation"` or `"test"` for a character (counted from 0)."""
    if alphabet in VINYALS_TEST:
        return "test"
    if alphabet == "Gurmukhi" and character >= VINYALS_GURMUKHI_TEST_FROM:
        return "test"
    return "validation" if alphabet in VINYALS_VALIDATION else "train"


def background(alphabet: str, label: int) -> str:
    """Returns `"train"`, `"validation"` or `"test"` for a character of this label (0 to 1622)."""
    if label >= BACKGROUND_CHARACTERS:
        return "test"
    return "validation" if alphabet in VINYALS_VALIDATION else "train"


def random_characters(names: Sequence[str]) -> list[str]:
    """Returns `"train"`, `"validation"` or `"test"` for each of Omniglot's characters.

    1,100, 100 and the other 423 in random order: the numbers of Finn, Abbeel, Levine:
    Model-agnostic meta-learning for fast adaptation of deep networks (ICML 2017), whose own choice
    of characters was not published.
    """
    fates = ["test"] * len(names)
    order = shuffled(names)
    for c in order[:1100]:
        fates[c] = "train"
    for c in order[1100:1200]:
        fates[c] = "validation"
    return fates


def cifar_fs(name: str) -> str:
    """Returns `"train"`, `"validation"` or `"test"` for a class of CIFAR-100."""
    if name in CIFAR_FS_TEST:
        return "test"
    return "validation" if name in CIFAR_FS_VALIDATION else "train"


def fc100(superclass: str) -> str:
    """Returns `"train"`, `"validation"` or `"test"` for a superclass of CIFAR-100."""
    if superclass in FC100_TEST:
        return "test"
    return "validation" if superclass in FC100_VALIDATION else "train"


def shuffled(names: Sequence[str], seed: int = 0) -> list[int]:
    """Returns the positions of `names` in a random order that never changes.

    The order is that of the SHA-256 digests of `f"{seed}/{name}"`: it depends on no library's
    generator, and a name that comes or goes leaves the others in their order.

    Example:
        >>> shuffled(["alpha", "beta", "gamma"]) == shuffled(["alpha", "beta", "gamma"])
        True
    """

    def digest(i: int) -> bytes:
        # The name of a folder need not be UTF-8.
        text = f"{seed}/{names[i]}".encode(errors="surrogateescape")
        return hashlib.sha256(text).digest()

    return sorted(range(len(names)), key=digest)
