import numpy as np
import pytest

from octavo.runtime.seams import RATE, fade, level, speech_rms


def voice(seconds, amplitude, silence=0.0):
    """A buzz of 150 Hz with the syllables of speech (4 a second), and silence at its end; float32."""
    t = np.arange(round(seconds * RATE)) / RATE
    sound = np.sin(2 * np.pi * 150 * t) * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t))
    return np.concatenate([amplitude * sound, np.zeros(round(silence * RATE))]).astype(np.float32)


def test_active_speech_ignores_silence_and_quiet_noise():
    alone = speech_rms(voice(2, 0.3))
    assert alone == pytest.approx(0.3 * np.sqrt(0.5 * (0.55**2 + 0.45**2 / 2)), rel=0.02)
    assert speech_rms(voice(2, 0.3, silence=6)) == pytest.approx(alone, rel=1e-6)
    noisy = voice(2, 0.3, silence=6) + 0.001 * np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    assert speech_rms(noisy) == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize("decibels", [-3.9, -2, 0.5, 3.9])
def test_a_piece_comes_to_the_loudness_of_the_first(decibels):
    first, reference = level(voice(1, 0.2), None)
    np.testing.assert_array_equal(first, voice(1, 0.2))
    pcm, handed_on = level(voice(1.5, 0.2 * 10 ** (decibels / 20), silence=1), reference)
    assert handed_on == reference
    assert pcm.dtype == np.float32 and len(pcm) == round(2.5 * RATE)
    assert speech_rms(pcm) == pytest.approx(reference, rel=0.01)


@pytest.mark.parametrize("decibels", [-12, 12])
def test_the_gain_is_at_most_4_db(decibels):
    reference = speech_rms(voice(1, 0.2))
    pcm, _ = level(voice(1, 0.2 * 10 ** (decibels / 20)), reference)
    gain = 20 * np.log10(speech_rms(pcm) / (reference * 10 ** (decibels / 20)))
    assert gain == pytest.approx(-np.sign(decibels) * 4, abs=0.01)


def test_no_sample_is_raised_above_full_scale():
    pcm = voice(1, 0.2)
    pcm[5000] = 0.9
    levelled, _ = level(pcm, 2 * speech_rms(pcm))
    assert np.abs(levelled).max() == pytest.approx(1.0, abs=1e-6)
    pcm[5000] = 1.2  # beyond it already: neither raised nor lowered
    np.testing.assert_array_equal(level(pcm, 2 * speech_rms(pcm))[0], pcm)


@pytest.mark.parametrize("pcm", [np.zeros(RATE, np.float32), np.zeros(0, np.float32), np.full(RATE, 1e-5, np.float32)])
def test_silence_stays_as_it_is(pcm):
    assert speech_rms(pcm) is None
    assert level(pcm, None)[1] is None
    same, reference = level(pcm, 0.1)
    assert reference == 0.1
    np.testing.assert_array_equal(same, pcm)


def test_a_piece_shorter_than_a_frame_has_a_loudness():
    assert speech_rms(np.full(100, 0.5, np.float32)) == pytest.approx(0.5)


def test_no_click_at_a_seam():
    """Two pieces that meet at opposite extremes: bare, the seam is a step of 1; faded, none larger than inside."""
    t = np.arange(2 * RATE) / RATE
    one = (0.5 * np.cos(2 * np.pi * 150 * t)).astype(np.float32)
    two = -one
    joined = np.concatenate([one, two])
    at = len(one)
    assert abs(joined[at] - joined[at - 1]) > 0.99
    joined = np.concatenate([fade(one, start=False, end=True), fade(two, start=True, end=False)])
    inside = np.abs(np.diff(one)).max()
    assert abs(joined[at] - joined[at - 1]) < 1e-4
    assert np.abs(np.diff(joined)).max() < 1.1 * inside
    # A click is broadband: above 4 kHz the seam holds no more than a thousandth of what the bare step holds there.
    assert treble(joined, at) < 1e-3 * treble(np.concatenate([one, two]), at)


def treble(pcm, at):
    spectrum = np.abs(np.fft.rfft(pcm[at - 2400 : at + 2400].astype(np.float64) * np.hanning(4800))) ** 2
    return spectrum[round(4000 / (RATE / 4800)) :].sum()


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 239, 240, 300, 480, 960, 9600])
def test_a_fade_changes_ten_milliseconds_and_no_length(start, end, length):
    pcm = np.ones(length, np.float32)
    faded = fade(pcm, start=start, end=end)
    assert faded.shape == pcm.shape and faded.dtype == np.float32
    assert (pcm == 1).all()  # a copy
    if length >= 480:
        want = np.ones(length)
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(240) + 0.5) / 240)
        want[:240] *= ramp if start else 1
        want[-240:] *= ramp[::-1] if end else 1
        np.testing.assert_allclose(faded, want, atol=1e-6)
    elif length >= 4:
        assert not start or faded[0] < 0.001
        assert not end or faded[-1] < 0.001


def test_seams_take_slices_and_leave_them():
    pcm = voice(1, 0.2)[::2]
    before = pcm.copy()
    fade(pcm, start=True, end=True)
    level(pcm, 0.2)
    np.testing.assert_array_equal(pcm, before)
