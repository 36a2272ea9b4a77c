"""Make one clip sound like another room, microphone, person or day, cheaply enough to do at every step.

Everything linear (reverb, equalisation, telephone band, coloured noise) happens in one spectrum, so a
clip costs one transform forth and one back. It knows no grammar, no cache and no model.
"""

from __future__ import annotations

import librosa
import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

RATE = 16000  # Hz
SLOWEST, FASTEST = 0.85, 1.2  # speed, and pitch and formants with it


def augment(
    samples: np.ndarray, rng: np.random.Generator, strength: float, noise_bed: np.ndarray | None = None
) -> np.ndarray:
    """One random distortion of a clip -> (n / 1.2 .. n / 0.85,) float32, peak at most 1.

    samples: (n,) float32 at 16 kHz. strength: 0 changes nothing, 1 is a bad telephone in a kitchen; it scales
    both how often and how far. noise_bed: (any,) float32 of real noise, a random stretch of which is mixed in
    at times.
    """
    if strength <= 0 or len(samples) < 2:
        return samples.astype(np.float32)
    out = _change_speed(samples, rng, strength)
    out = _change_channel(out, rng, strength)
    if noise_bed is not None and rng.random() < 0.4 * strength:
        at = int(rng.integers(max(1, len(noise_bed) - len(out))))
        bed = np.resize(noise_bed[at : at + len(out)], len(out))
        out = out + bed * (_loudness(out) / (_loudness(bed) + 1e-9) * _noise_gain(rng, strength))
    peak = float(np.abs(out).max()) + 1e-9
    # 0.5 is the peak of an undistorted clip; at full strength it is moved by up to -18 dB and +5 dB.
    level = 0.5 * 10 ** (rng.uniform(-18, 5) * strength / 20)
    if rng.random() < 0.05 * strength:
        out = np.clip(out, -0.5 * peak, 0.5 * peak)
    return (out * (level / peak)).astype(np.float32)


def _change_speed(samples: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    speed = 1 + strength * (rng.uniform(SLOWEST, FASTEST) - 1)
    # Linear interpolation dulls the top octave a little, as rooms do; a real resampler costs ten times more.
    at = np.arange(0, len(samples) - 1, speed, dtype=np.float32)
    return np.interp(at, np.arange(len(samples), dtype=np.float32), samples).astype(np.float32)


def _change_channel(samples: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Reverb, then coloured noise, then equalisation and band limit, each by chance -> (n,) float32."""
    n = len(samples)
    size = next_fast_len(n + RATE // 4, real=True)  # room for the echo, which must not wrap to the start
    octaves = np.log2(np.arange(size // 2 + 1, dtype=np.float32) * (RATE / size) + 20)  # log2 of Hz
    spectrum = rfft(samples, size)
    if rng.random() < 0.5 * strength:
        spectrum *= rfft(_room(rng, strength), size)
    if rng.random() < 0.7 * strength:
        spectrum += _coloured_noise(spectrum, octaves, rng, _noise_gain(rng, strength))
    decibels = np.zeros_like(octaves)
    if rng.random() < 0.7 * strength:
        for _ in range(rng.integers(1, 5)):  # peaks and dips anywhere from 60 Hz to 8 kHz
            centre, width = rng.uniform(6, 13), rng.uniform(0.3, 1.5)
            decibels += rng.uniform(-10, 10) * strength * np.exp(-(((octaves - centre) / width) ** 2))
        decibels += rng.uniform(-3, 3) * strength * (octaves - 10)  # tilt: dull or bright, dB an octave
    if rng.random() < 0.3 * strength:
        # Half of what is heard may have been recorded at 8 kHz: nothing above 4 kHz, and less than that.
        decibels -= 60 * np.clip((octaves - np.log2(rng.uniform(3200, 3900))) * 6, 0, 1)
        if rng.random() < 0.5:
            decibels -= 30 * np.clip(np.log2(rng.uniform(100, 300)) - octaves, 0, 1)
    spectrum *= np.exp(decibels * np.float32(np.log(10) / 20))
    return irfft(spectrum, size)[:n]


def _room(rng: np.random.Generator, strength: float) -> np.ndarray:
    """An impulse response (up to 0.25 s,): the direct sound, then noise dying away."""
    length = int(rng.uniform(0.05, 0.25) * RATE)
    tail = rng.standard_normal(length, dtype=np.float32)
    tail *= np.exp(np.linspace(0, -6.9, length, dtype=np.float32))  # down by 60 dB at its end
    tail[: int(rng.uniform(0.001, 0.01) * RATE)] = 0  # nothing echoes before the nearest wall
    # The echoes' energy is 0..15 dB below the direct sound's.
    tail *= strength * 10 ** (-rng.uniform(0, 15) / 20) / (np.sqrt(float(tail @ tail)) + 1e-9)
    tail[0] = 1
    return tail


def _coloured_noise(spectrum: np.ndarray, octaves: np.ndarray, rng: np.random.Generator, gain: float) -> np.ndarray:
    """Noise falling by 0 (white), 3 (pink) .. 6 (brown) dB an octave, `gain` times as loud as `spectrum`."""
    parts = rng.standard_normal((2, len(spectrum)), dtype=np.float32)
    shape = np.exp2(octaves * np.float32(-rng.uniform(0, 1)))
    noise = (parts[0] + 1j * parts[1]) * shape
    return noise * np.float32(gain * np.linalg.norm(spectrum) / np.linalg.norm(noise))


def _noise_gain(rng: np.random.Generator, strength: float) -> float:
    """Noise to speech, as an amplitude: 8..40 dB below at full strength, 24..40 at half."""
    return 10 ** (-rng.uniform(40 - 32 * strength, 40) / 20)


def _loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def warp_formants(mel: np.ndarray, rng: np.random.Generator, most: float) -> None:
    """Stretch the frequencies of mel (n_mels, T) in place by a random factor, exp(-most) to exp(most).

    As if a longer or shorter throat had spoken at the same pitch rate (vocal tract length perturbation,
    Jaitly and Hinton 2013): the few people of a small corpus sound like more.
    """
    centres = librosa.mel_frequencies(len(mel) + 2, fmin=0.0, fmax=RATE / 2)[1:-1]
    at = np.interp(centres * np.exp(rng.uniform(-most, most)), centres, np.arange(len(mel)))
    lower = np.floor(at).astype(int)
    upper, share = np.minimum(lower + 1, len(mel) - 1), (at - lower).astype(mel.dtype)[:, None]
    mel[:] = mel[lower] * (1 - share) + mel[upper] * share


def spec_augment(mel: np.ndarray, rng: np.random.Generator, strength: float) -> None:
    """Blank random bands and stretches of mel (n_mels, T) in place, with its own mean.

    At full strength up to 2 bands of up to a fifth of the mels, and about one stretch of up to 12 frames
    in every 100: shorter than a word, so that no answer is erased.
    """
    n_mels, frames = mel.shape
    mean = mel.mean()
    for _ in range(rng.binomial(2, 0.8 * strength)):
        width = int(rng.integers(0, n_mels // 5 + 1))
        at = int(rng.integers(0, n_mels - width + 1))
        mel[at : at + width] = mean
    for _ in range(rng.binomial(frames // 100 + 1, 0.8 * strength)):
        width = int(rng.integers(0, min(12, frames) + 1))
        at = int(rng.integers(0, frames - width + 1))
        mel[:, at : at + width] = mean
