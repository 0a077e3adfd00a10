"""Folders of sounds: spectrograms against a twin in NumPy, and what was done to a sound is said."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.damage import damage
from tfmeta.data import EpisodeSampler, audio_from_directory, read_audio

soundfile = pytest.importorskip("soundfile", reason="needs the extra `audio`")
pytest.importorskip("soxr", reason="needs the extra `audio`")

RATE = 16000
NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, RATE)


def twin(sound: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """The log-mel spectrogram by its definition: float64, a sum for each number."""
    window, hop = round(0.025 * rate), round(0.01 * rate)
    length = 1
    while length < window:
        length *= 2
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    k = np.arange(length // 2 + 1)
    waves = np.exp(-2j * np.pi * np.outer(k, n) / length)
    starts = range(0, len(sound) - window + 1, hop)
    power = np.array([np.abs(waves @ (hann * sound[s : s + window])) ** 2 for s in starts])

    def mel(f: Any) -> Any:
        return 2595 * np.log10(1 + np.asarray(f) / 700)

    edges = np.linspace(mel(60), mel(rate / 2), mels + 2)
    at = mel(k * rate / length)
    bands = np.zeros([len(k), mels])
    for b in range(mels):
        low, middle, high = edges[b : b + 3]
        bands[:, b] = np.clip(
            np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None
        )
    bands[0] = 0  # the mean of a window is no tone
    return np.log(1e-6 + power @ bands)[..., None]


@pytest.mark.parametrize(
    ("rate", "mels", "seconds"), [(16000, 64, None), (8000, 40, 0.25), (22050, 80, 0.3)]
)
def test_spectrograms_are_those_of_the_twin(
    rate: int, mels: int, seconds: float | None, tmp_path: Path
) -> None:
    times = np.arange(round(0.3 * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * 700 * times) + 0.1 * NOISE[: len(times)]
    soundfile.write(tmp_path / "x.wav", sound, rate, "DOUBLE")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if seconds == 0.25 else "error")
        made = read_audio(tmp_path / "x.wav", rate, seconds, mels=mels)
    expected = twin(sound if seconds is None else sound[: round(seconds * rate)], rate, mels)
    assert made.dtype == np.float32
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=3e-6, atol=3e-6)
    assert (made[:, mels // 3 :].max(axis=0) > made.min()).all()


def test_16_bits_and_compressed_without_loss(tmp_path: Path) -> None:
    """A number of a file is that divided by 2**15; FLAC and AIFF hold the same."""
    whole = np.round(NOISE * 2**14).astype(np.int16)
    expected = twin(whole / 2**15, RATE, 64)
    for name in ("x.wav", "x.flac", "x.aiff"):
        soundfile.write(tmp_path / name, whole, RATE, "PCM_16")
        made = read_audio(tmp_path / name)
        np.testing.assert_allclose(made, expected, rtol=3e-6, atol=3e-6)
    for name in ("x.ogg", "x.mp3", "x.opus"):
        try:
            soundfile.write(tmp_path / name, whole / 2**15, RATE)
        except (soundfile.LibsndfileError, TypeError, ValueError):
            continue  # an older libsndfile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = read_audio(tmp_path / name, seconds=1.0)
        # Bands of noise are about as loud, wherever a codec lets the sound begin.
        assert np.abs(made[:, 10:40].mean(0) - expected[:, 10:40].mean(0)).max() < 1


def write(folder: Path, name: str, seconds: float, rate: int = RATE, channels: int = 1) -> Path:
    """A tone of 440 Hz, which is louder in the left channel, and its mean over all is 0.25 high."""
    times = np.arange(round(seconds * rate)) / rate
    tone = 0.25 * np.sin(2 * np.pi * 440 * times)
    loud = np.linspace(1.5, 0.5, channels) if channels > 1 else np.ones(1)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, tone[:, None] * loud, rate, "FLOAT")
    return folder / name


TOLD = (
    r"Of 6 sound\(s\) of {}/words some could not be kept as they are: "
    r"2 resampled to 16000 samples a second \(resample=False refuses\); "
    r"2 of several channels, of which the mean was taken; "
    r"1 longer than 1.0 s, of which the beginning was kept; "
    r"2 shorter than 1.0 s, followed by silence$"
)


def test_a_folder_is_read_and_told_of_once(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    write(folder, "no/0.wav", 1)
    write(folder, "no/1.wav", 1.5)
    write(folder, "no/2.wav", 0.5, channels=2)
    write(folder, "yes/0.wav", 1, 44100)
    write(folder, "yes/1.wav", 1, 8000, channels=3)
    write(folder, "yes/2.WAV", 0.2)
    (folder / "yes" / "notes.txt").write_text("no sound")
    with pytest.warns(UserWarning, match=TOLD.format(tmp_path)) as caught:
        made = audio_from_directory(folder, seconds=1.0)
    assert [warning.filename for warning in caught] == [__file__]
    assert made.class_names == ("no", "yes")
    assert made.examples.shape == (6, 98, 64, 1)
    assert made.description == f"sounds of {folder}"
    times = np.arange(RATE) / RATE
    tone = 0.25 * np.sin(2 * np.pi * 440 * times)
    expected = twin(tone, RATE, 64)
    np.testing.assert_allclose(made.examples[0], expected, atol=1e-4)
    np.testing.assert_allclose(made.examples[1], expected, atol=1e-4)
    half = twin(np.where(times < 0.5, tone, 0), RATE, 64)
    np.testing.assert_allclose(made.examples[2], half, atol=1e-4)
    # A tone of another rate is the same tone, but for where it begins and ends.
    band = int(expected[50].argmax())
    for i in (3, 4):
        np.testing.assert_allclose(made.examples[i][5:-5, band], expected[5:-5, band], atol=1e-3)
    inputs, _ = EpisodeSampler(made, ways=2, shots=1, queries=2).batch(0)
    assert inputs["support_x"].shape == (1, 2, 98, 64, 1)


def test_what_is_wrong_with_a_sound_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    for name in ("no/0.wav", "yes/0.wav"):
        write(folder, name, 1)
    wrong = {
        "text.wav": (lambda path: path.write_text("no sound"), "Format not recog|unknown format"),
        "empty.wav": (lambda path: soundfile.write(path, np.zeros(0), RATE), "it holds no sound"),
        "short.wav": (lambda path: soundfile.write(path, NOISE[:100], RATE), "shorter than 0.025"),
        "nan.wav": (
            lambda path: soundfile.write(path, np.full(RATE, np.nan), RATE, "FLOAT"),
            "it holds a NaN or an infinity",
        ),
    }
    for name, (make, message) in wrong.items():
        file = folder / "yes" / name
        make(file)
        with pytest.raises(ValueError, match=rf"Not a readable sound: '{file}' \(.*({message})"):
            audio_from_directory(folder)
        with pytest.warns(UserWarning, match=rf"^Left out 1 unreadable sound\(s\): {file}$"):
            assert len(audio_from_directory(folder, skip_unreadable=True)) == 2
        file.unlink()
    write(folder, "yes/slow.wav", 1, 8000)
    with pytest.raises(ValueError, match=r"slow.wav' \(it has 8000 samples a second, not 16000\)"):
        audio_from_directory(folder, resample=False)
    (folder / "yes" / "slow.wav").unlink()
    write(folder, "yes/long.wav", 1.5)
    with pytest.raises(ValueError, match=r"need `seconds`, .*no/0.wav' of 98 frames and .*of 148"):
        audio_from_directory(folder)
    with pytest.raises(FileNotFoundError, match=r"`path` must be a sound file. Received: .*none"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(ValueError, match=r"one sub-folder of sounds for each class; no sounds \("):
        audio_from_directory(folder / "yes")
    (folder / "no" / "0.wav").unlink()
    (folder / "yes" / "long.wav").unlink()
    with pytest.raises(
        ValueError, match=r"two classes, each a sub-folder of sounds.*class 'words/yes'"
    ):
        audio_from_directory(folder / "..", seconds=1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample_rate": 16e3}, TypeError, "`sample_rate` must be an integer"),
        ({"sample_rate": 10}, ValueError, "`sample_rate` must be at least 1000"),
        ({"seconds": 0}, ValueError, "`seconds` must be positive and finite"),
        ({"seconds": 0.01}, ValueError, "`seconds` must be at least 0.025, of which one spectr"),
        ({"mels": 0}, ValueError, "`mels` must be at least 1"),
        ({"mels": 500}, ValueError, "`mels` must be so few that there is a frequency in each b"),
        ({"resample": "no"}, TypeError, "`resample` must be True or False. Received: resample="),
    ],
)
def test_arguments_that_are_none(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    for read in (read_audio, audio_from_directory):
        with pytest.raises(error, match=message):
            read(tmp_path, **options)


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "words", "no/0.wav", 1, 8000)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ImportError, match=r"need the package soxr: pip install 'tfmeta\[audio\]'"):
        read_audio(file)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for read in (read_audio, audio_from_directory):
        with pytest.raises(ImportError, match="Sounds need the package soundfile: pip install"):
            read(file if read is read_audio else tmp_path)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "aiff"])
def test_sounds_that_are_damaged_at_random(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        soundfile.write(tmp_path / c / f"x.{kind}", NOISE[:2000], RATE)
    file = tmp_path / "a" / f"x.{kind}"
    whole, refused = file.read_bytes(), 0
    for _ in range(25):
        how = damage(file, random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = audio_from_directory(tmp_path, seconds=0.1)
                assert made.examples.shape == (2, 8, 64, 1), how
                assert np.isfinite(made.examples).all(), how
            except ValueError as error:
                refused += 1
                text = str(error)
                assert str(file) in text, how
        file.write_bytes(whole)
    assert refused > 1
