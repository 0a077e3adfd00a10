"""Folders of sounds as examples: their spectrograms, which a network takes as it takes images."""

from __future__ import annotations

import os
from collections import Counter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tfmeta.checks import check_count, check_positive
from tfmeta.data.changes import warn_changes
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.images import in_words, warn_unreadable
from tfmeta.data.readers import classes_and_groups, list_files
from tfmeta.types import Array

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")
# Seconds that a spectrum is of, and from one to the next.
WINDOW, HOP = 0.025, 0.01
# Hertz of the lowest band's lower end; below is hum.
LOWEST = 60.0
# What is added before the logarithm: that of silence is finite.
FLOOR = 1e-6
_AT_ONCE = 1 << 16  # samples that are read


def audio_from_directory(
    path: str | os.PathLike[str],
    sample_rate: int = 16000,
    seconds: float | None = None,
    *,
    mels: int = 64,
    resample: bool = True,
    skip_unreadable: bool = False,
) -> ClassDataset:
    """Reads a folder of sounds into memory, each as `read_audio` does.

    A class is a folder below `path` that holds sounds, and is called as by
    `ClassDataset.from_directory`. One warning says how many sounds were resampled, cut, lengthened
    or mixed of several channels.

    Args:
        path: The folder, of files AIFF, FLAC, MP3, Ogg (Opus, Vorbis) and WAV.
        sample_rate, seconds, mels, resample: As for `read_audio`. Without `seconds` all sounds must
            be of one length.
        skip_unreadable: Leaves out files and folders that cannot be read, with a warning that
            names them, instead of raising an error.

    Returns:
        The spectrograms as float32 `[n, frames, mels, 1]`, in sorted order of their paths.

    Raises:
        FileNotFoundError: `path` does not exist.
        ImportError: The package soundfile is missing, or for resampling soxr:
            `pip install 'tfmeta[audio]'`.
        NotADirectoryError: `path` is a file.
        TypeError: An argument is of another type.
        ValueError: There are no sounds or only one class, one cannot be read (it is named), sounds
            of different lengths come without `seconds`, or an argument is out of range.

    Example:

    ```python
    words = tfmeta.data.audio_from_directory("recordings", seconds=1.0)
    train, validation, test = words.split(0.6, 0.2, 0.2)
    words.example_shape    # (98, 64, 1)
    ```
    """
    wanted = Wanted.checked(sample_rate, seconds, mels, resample)
    _package("soundfile")
    files, labels, unreadable = list_files(path, skip_unreadable, suffixes=SUFFIXES, what="sounds")
    warn_unreadable(unreadable, stacklevel=3, what="folder(s)")
    made: list[Array] = []
    kept: list[int] = []
    lost: Counter[str] = Counter()
    for i, file in enumerate(files):
        try:
            spectra, done = read_sound(file, wanted)
        except (ValueError, FileNotFoundError) as error:
            if not skip_unreadable:
                raise ValueError(
                    f"{error}. Leave out such files with skip_unreadable=True."
                ) from error
            continue
        if made and spectra.shape != made[0].shape:
            raise ValueError(
                "Sounds of different lengths need `seconds`, to which they are cut or lengthened. "
                f"Received: seconds=None, {files[kept[0]]!r} of {len(made[0])} frames and {file!r} "
                f"of {len(spectra)}"
            )
        made.append(spectra)
        kept.append(i)
        lost.update(done)
    left = sorted({*range(len(files))}.difference(kept))
    warn_unreadable([files[i] for i in left], stacklevel=3, what="sound(s)")
    if not made:
        raise ValueError(f"None of the {len(files)} sounds can be read.")
    warn_changes(lost, len(made), wanted.words(), f"sound(s) of {in_words(path)}", stacklevel=3)
    labels = [labels[i] for i in kept]
    named = classes_and_groups(path, labels, "sounds")
    return ClassDataset(np.stack(made), labels, *named, description=f"sounds of {in_words(path)}")


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int = 16000,
    seconds: float | None = None,
    *,
    mels: int = 64,
    resample: bool = True,
) -> Array:
    r"""Reads one sound as a log-mel spectrogram, float32 `[frames, mels, 1]`.

    \[ x_{t,b} = \ln\Big(10^{-6} + \sum_k M_{k,b}\,
       \Big|\sum_n w_n\, s_{t h + n}\, e^{-2\pi i k n / N}\Big|^2\Big) \]

    with samples \(s\) in \([-1, 1]\), a periodic Hann window \(w\) of 25 ms, \(h\) of 10 ms and
    \(N\) the next power of two. \(M\) are triangles of height 1 that overlap by half, of equal
    width in mel, \(2595 \log_{10}(1 + f / 700)\), from 60 Hz to half the sample rate. There is no
    padding: frames that are not whole are none.

    Args:
        path: A file AIFF, FLAC, MP3, Ogg (Opus, Vorbis) or WAV. Of several channels the mean is
            taken.
        sample_rate: Samples a second, to which sounds are resampled.
        seconds: The beginning that is kept; shorter sounds are followed by silence. `None` leaves
            them as long as they are.
        mels: How many bands.
        resample: Whether sounds of another rate are resampled, or are an error.

    Returns:
        The spectrogram.

    Raises:
        FileNotFoundError: `path` is no file.
        ImportError: The package soundfile is missing, or for resampling soxr.
        TypeError: An argument is of another type.
        ValueError: The file cannot be read, is empty, shorter than a window, not finite, or of
            another rate without `resample`; or an argument is out of range.

    Example:

    ```python
    spectrogram = tfmeta.data.read_audio("hello.wav", seconds=1.0)
    spectrogram.shape    # (98, 64, 1)
    ```
    """
    wanted = Wanted.checked(sample_rate, seconds, mels, resample)
    spectra, done = read_sound(path, wanted)
    warn_changes(Counter(done), 1, wanted.words(), "sound(s)", stacklevel=3)
    return spectra


class Wanted(NamedTuple):
    """How sounds are read, and the bands of their spectra."""

    rate: int
    seconds: float | None
    resample: bool
    bands: Array

    @classmethod
    def checked(cls, sample_rate: int, seconds: float | None, mels: int, resample: bool) -> Wanted:
        """Raise unless all arguments can be used together."""
        rate, bands = check_count("sample_rate", sample_rate, 1000), check_count("mels", mels)
        if seconds is not None:
            check_positive("seconds", seconds)
            if round(seconds * rate) < round(WINDOW * rate):
                raise ValueError(
                    f"`seconds` must be at least {WINDOW}, of which one spectrum is. "
                    f"Received: seconds={seconds}"
                )
        if not isinstance(resample, bool):
            raise TypeError(f"`resample` must be True or False. Received: resample={resample!r}")
        return cls(rate, seconds, resample, _bands(rate, bands))

    @property
    def samples(self) -> int:
        """How many there are of a sound in the end, if `seconds` says it."""
        assert self.seconds is not None
        return round(self.seconds * self.rate)

    def words(self) -> dict[str, str]:
        """Return what is said of so many sounds."""
        return {
            "resampled": f"{{}} resampled to {self.rate} samples a second (resample=False refuses)",
            "mixed": "{} of several channels, of which the mean was taken",
            "cut": f"{{}} longer than {self.seconds} s, of which the beginning was kept",
            "lengthened": f"{{}} shorter than {self.seconds} s, followed by silence",
        }


def _bands(rate: int, mels: int) -> Array:
    """Return the weight of each frequency in each band, float64 `[frequencies, mels]`."""
    import tensorflow as tf  # slow to import

    bins = _fft_length(rate) // 2 + 1
    bands = tf.signal.linear_to_mel_weight_matrix(
        mels, bins, rate, LOWEST, rate / 2, dtype=tf.float64
    ).numpy()
    if not bands.any(axis=0).all():
        raise ValueError(
            "`mels` must be so few that there is a frequency in each band. Received: "
            f"mels={mels}, with {bins} frequencies at sample_rate={rate}"
        )
    return np.asarray(bands)


def _fft_length(rate: int) -> int:
    return 1 << (round(WINDOW * rate) - 1).bit_length()


def read_sound(path: str | os.PathLike[str], wanted: Wanted) -> tuple[Array, set[str]]:
    """Return the spectrogram of a file, and what was done to the sound before."""
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"`path` must be a sound file. Received: path={name!r}")
    soundfile = _package("soundfile")
    try:
        samples, rate, is_longer = _samples(soundfile, name, wanted.seconds)
        if not samples.size:
            raise ValueError("it holds no sound")
        if not np.isfinite(samples).all():
            raise ValueError("it holds a NaN or an infinity")
        if rate != wanted.rate and not wanted.resample:
            raise ValueError(f"it has {rate} samples a second, not {wanted.rate}")
    # libsndfile's errors are RuntimeErrors, and there are others for arguments it refuses.
    except Exception as error:
        raise ValueError(f"Not a readable sound: {name!r} ({error})") from error
    done = {"cut"} if is_longer else set()
    if samples.shape[1] > 1:
        done.add("mixed")
    sound: Array = samples.mean(axis=1)
    if rate != wanted.rate:
        done.add("resampled")
        sound = np.asarray(_package("soxr").resample(sound, rate, wanted.rate))
    # A resampled one may lack a sample.
    if wanted.seconds is not None and not is_longer and len(sound) < wanted.samples - 1:
        done.add("lengthened")
    if wanted.seconds is None and len(sound) < round(WINDOW * wanted.rate):
        raise ValueError(f"Not a readable sound: {name!r} (it is shorter than {WINDOW} s)")
    return spectrogram(sound, wanted), done


def _samples(soundfile: Any, name: str, seconds: float | None) -> tuple[Array, int, bool]:
    """Return float64 `[samples, channels]`, the rate, and whether there are more in the file."""
    with soundfile.SoundFile(name) as file:
        rate = int(file.samplerate)
        most = None if seconds is None else round(seconds * rate)
        parts: list[Array] = [np.empty((0, file.channels))]
        read = 0
        # What a header says of the length may be a lie, for which no memory is taken.
        while most is None or read <= most:
            at_once = _AT_ONCE if most is None else min(_AT_ONCE, most + 1 - read)
            part = file.read(at_once, dtype="float64", always_2d=True)
            if not len(part):
                break
            parts.append(part)
            read += len(part)
    samples = np.concatenate(parts)
    return samples[:most], rate, most is not None and read > most


def spectrogram(sound: Array, wanted: Wanted) -> Array:
    """Return the log-mel spectrogram of a sound, `[frames, mels, 1]`; see `read_audio`.

    Args:
        sound: `[n]`, in `[-1, 1]`, of the rate that is wanted. It is cut or followed by silence
            where so many seconds are wanted.
        wanted: The bands, and how long.
    """
    import tensorflow as tf

    if wanted.seconds is not None:
        sound = np.pad(sound[: wanted.samples], (0, max(0, wanted.samples - len(sound))))
    window = round(WINDOW * wanted.rate)
    # TensorFlow's own of an odd length is not periodic.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectra = tf.signal.stft(
        sound.astype(np.float64),
        window,
        round(HOP * wanted.rate),
        _fft_length(wanted.rate),
        lambda *_, dtype: tf.constant(hann, dtype),
    )
    power = np.abs(spectra.numpy()) ** 2
    return np.asarray(np.log(FLOOR + power @ wanted.bands), np.float32)[..., None]


def _package(name: str) -> ModuleType:
    try:
        return __import__(name)
    # soundfile raises an OSError where libsndfile cannot be loaded.
    except (ImportError, OSError) as error:
        raise ImportError(
            f"Sounds need the package {name}: pip install 'tfmeta[audio]'. Received: {error}"
        ) from error
