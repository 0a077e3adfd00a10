"""The data sets known by name: words and numbers alone, which the command knows without NumPy."""

from __future__ import annotations

from typing import NamedTuple


class Named(NamedTuple):
    """A data set that is known by name.

    Attributes:
        words: What it holds, in a line.
        classes: How many are for training, validation and testing, where nothing else is asked for.
        licence: In short words; the home of the data decides.
        download: How many bytes, or `None` where nothing is downloaded.
        source: Its name in TensorFlow Datasets, or `None` where there is a folder alone.
        tested: Whether the tests read the data themselves, and not only made-up ones of their form.
        splits: The divisions into classes in `data/class_splits.json`, the default one first; none
            for those that a module of their own reads.
        parts: What to read of TensorFlow Datasets.
        label_key: The feature there that names the class.
        image_size: Side of the images by default, or `None` for what are no images.
        examples_per_class: How many are read by default; all when `None`.
    """

    words: str
    classes: tuple[int, int, int]
    licence: str
    download: int | None = None
    source: str | None = None
    tested: bool = False
    splits: tuple[str, ...] = ()
    parts: str = "train+test"
    label_key: str = "label"
    image_size: int | None = 84
    examples_per_class: int | None = None


_RESEARCH = "non-commercial research"
_NONE = "none stated"
_DECATHLON = 429_854_759

NAMED = {
    "omniglot": Named(
        "handwritten characters of 50 alphabets, 1,623 classes, 28x28; presets: "
        "vinyals, vinyals_final, maml, lake",
        (4112, 688, 1692),
        "MIT",
        18_827_037,
        "omniglot",
        tested=True,
        image_size=28,
    ),
    "cifar_fs": Named(
        "CIFAR-100 with its classes split at random, 100 classes, 32x32 in colour",
        (64, 16, 20),
        _NONE,
        168_513_733,
        "cifar100",
        tested=True,
        splits=("published",),
        image_size=32,
    ),
    "fc100": Named(
        "CIFAR-100 with its classes split by superclass, 100 classes, 32x32 in colour",
        (60, 20, 20),
        _NONE,
        168_513_733,
        "cifar100",
        tested=True,
        splits=("published",),
        image_size=32,
    ),
    "glyphs": Named(
        "letters of matplotlib's fonts, about 1,100 classes, 28x28; needs no download",
        (719, 179, 225),
        "those of the fonts",
        tested=True,
        image_size=28,
    ),
    "cub": Named(
        "birds, 200 species (CUB-200-2011)",
        (100, 50, 50),
        _NONE,
        1_189_858_222,
        "caltech_birds2011",
        splits=("closer_look", "meta_dataset"),
        label_key="label_name",
    ),
    "flowers": Named(
        "flowers, 102 species (VGG Flower)",
        (71, 15, 16),
        _NONE,
        344_878_000,
        "oxford_flowers102",
        splits=("meta_dataset",),
        parts="train+validation+test",
    ),
    "dtd": Named(
        "textures, 47 kinds (DTD)",
        (33, 7, 7),
        "research",
        625_239_812,
        "dtd",
        splits=("meta_dataset",),
        parts="train+validation+test",
    ),
    "aircraft": Named(
        "aeroplanes, 100 variants (FGVC-Aircraft), from a folder of your own",
        (70, 15, 15),
        _RESEARCH,
        splits=("meta_dataset",),
    ),
    "traffic_signs": Named(
        "German traffic signs, 43 kinds (GTSRB), to test on",
        (0, 0, 43),
        _NONE,
        _DECATHLON,
        "visual_domain_decathlon/gtsrb",
        splits=("meta_dataset",),
        parts="train+validation",
    ),
    "quickdraw": Named(
        "sketches of 345 things (Quick, Draw!), 28x28",
        (241, 52, 52),
        "CC BY 4.0",
        39_534_220_144,
        "quickdraw_bitmap",
        splits=("meta_dataset",),
        parts="train",
        image_size=28,
        examples_per_class=1000,
    ),
    "omniglot_emnist": Named(
        "across scripts: train on Omniglot without Latin, test on EMNIST, 28x28",
        (1597, 31, 31),
        "MIT; EMNIST: none stated",
        561_753_746,
        "emnist/byclass",
        splits=("closer_look",),
        image_size=28,
    ),
    "eurosat": Named(
        "land from a satellite, 10 uses (EuroSAT), to test on",
        (0, 0, 10),
        "MIT",
        94_280_567,
        "eurosat/rgb",
        splits=("bscd_fsl",),
        parts="train",
        image_size=64,
    ),
    "plant_village": Named(
        "leaves, 38 plants and diseases (PlantVillage), to test on",
        (0, 0, 38),
        "CC BY-SA 3.0; as republished CC0",
        868_032_562,
        "plant_village",
        splits=("bscd_fsl",),
        parts="train",
    ),
    "stanford_dogs": Named(
        "dogs, 120 breeds (Stanford Dogs)",
        (70, 20, 30),
        f"{_NONE}; ImageNet: {_RESEARCH}",
        815_912_960,
        "stanford_dogs",
        splits=("dn4",),
    ),
    "pets": Named(
        "cats and dogs, 37 breeds (Oxford-IIIT Pet), a split of our own",
        (23, 7, 7),
        "CC BY-SA 4.0",
        811_092_049,
        "oxford_iiit_pet",
        splits=("own",),
    ),
    "food101": Named(
        "dishes, 101 kinds (Food-101), a split of our own",
        (65, 16, 20),
        "scientific fair use",
        4_996_278_331,
        "food101",
        splits=("own",),
        parts="train+validation",
    ),
    "mini_imagenet": Named(
        "100 classes of ImageNet, from a folder of your own",
        (64, 16, 20),
        _RESEARCH,
        splits=("ravi",),
    ),
    "tiered_imagenet": Named(
        "608 classes of ImageNet, from a folder of your own",
        (351, 97, 160),
        _RESEARCH,
        splits=("ren",),
    ),
    "clinc150": Named(
        "utterances of 150 intents (CLINC150), texts, a split of our own by domain",
        (90, 30, 30),
        "CC BY 3.0",
        262_154,
        "clinc_oos",
        tested=True,
        splits=("domains",),
        parts="train+validation+test",
        label_key="intent_name",
        image_size=None,
    ),
    "spoken_digit": Named(
        "spoken digits, 10 classes, log-mel spectrograms, a split of our own",
        (4, 3, 3),
        "CC BY-SA 4.0",
        11_975_353,
        "spoken_digit",
        splits=("own",),
        parts="train",
        image_size=None,
    ),
}
"""By name. The classes of `glyphs` depend on the fonts that come with matplotlib."""

FROM_FOLDERS = [name for name, named in NAMED.items() if named.splits and named.source is None]
"""Those that TensorFlow Datasets lacks, or has without the names of the classes."""

ALIASES = {"vgg_flowers": "flowers"}
"""Other names for the same images in the same parts."""


def resizable(name: str) -> bool:
    """Return whether images of another size can be asked for."""
    return name != "glyphs" and NAMED[ALIASES.get(name, name)].image_size is not None


def in_bytes(number: int) -> str:
    """Return a size in words, `"1.2 GB"`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1000:.3g} kB"
