"""Sound as spectrograms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RATE = 8000  # samples in a second
SECONDS = 1.0  # of a recording; longer ones are cut, shorter ones end in silence
FRAME, STEP = 256, 128  # samples: 32 ms, every 16 ms
BANDS, LOWEST, HIGHEST = 40, 20.0, 4000.0  # mel bands, and their limits in Hz
_FLOOR = 1e-6  # of the energy of a band, before the logarithm


def log_mel(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return the log-mel spectrogram of a recording, `[frames, bands, 1]`.

    Entry `[t, b]` is `log(1e-6 + Σ_f M[f, b] |X[t, f]|)`, with X the short-time Fourier transform
    under a Hann window and M the triangles of the mel scale, as `tf.signal` has them.

    Args:
        samples: `[n]`, 8,000 a second: integers of 16 bits, or floats from -1 to 1.
    """
    import tensorflow as tf  # slow to import

    wave = np.asarray(samples)
    wave = wave.astype(np.float32) / (32768 if wave.dtype.kind in "iu" else 1)
    length = int(RATE * SECONDS)
    wave = np.pad(wave[:length], (0, max(0, length - len(wave))))
    energies = tf.abs(tf.signal.stft(wave, FRAME, STEP))
    mel = tf.signal.linear_to_mel_weight_matrix(BANDS, FRAME // 2 + 1, RATE, LOWEST, HIGHEST)
    spectrogram = tf.math.log(energies @ mel + _FLOOR)[..., tf.newaxis]
    return np.asarray(spectrogram, np.float32)
