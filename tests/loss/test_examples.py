# SPDX-License-Identifier: Apache-2.0
"""The examples that need no data run."""

import sys
import wave

import numpy as np
import pytest

from support.runs import ROOT, only_all, run

pytestmark = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="not in a source tree")


@only_all
def test_intermediate_ctc_learns_and_says_what_it_needs():
    for needed in ("flax", "optax", "tqdm"):
        pytest.importorskip(needed, reason="examples/requirements.txt is not installed")
    few = ["--steps", "120", "--batch", "16", "--words", "60"]
    done = run(sys.executable, ROOT / "examples" / "intermediate.py", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("label error rate")
    assert "memory of a step" in done.stdout


@only_all
@pytest.mark.parametrize("name", ["handwriting", "intermediate", "speech"])
def test_a_number_of_steps_that_trains_nothing_is_an_error(name):
    for needed in ("flax", "optax", "matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(needed, reason="examples/requirements.txt is not installed")
    done = run(sys.executable, ROOT / "examples" / f"{name}.py", "--steps", "0")
    assert done.returncode == 2
    assert "--steps: expected at least 1, got 0" in done.stderr


@only_all
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--here 2 --cluster", "expected one of --here, --cluster, --coordinator, got --here and"),
        ("--coordinator localhost:1", "together, got --coordinator"),
        ("--processes 2 --process 0", "together, got --processes and --process"),
        (
            "--coordinator localhost --processes 2 --process 0",
            "expected host:port, got 'localhost'",
        ),
        ("--coordinator localhost:1 --processes 2 --process 2", "expected 0 to 1, got 2"),
        ("--costs /no-such-folder/x.json", "expected a file in a folder that exists, got /no-such"),
    ],
)
def test_arguments_of_processes_that_do_not_go_together_are_an_error(arguments, said):
    for needed in ("flax", "optax", "matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(needed, reason="examples/requirements.txt is not installed")
    done = run(sys.executable, ROOT / "examples" / "distributed.py", *arguments.split())
    assert done.returncode == 2
    assert said in done.stderr


WORDS = "zero one two three four five six seven eight nine".split()
TEXTS = {f"digits/{n}": word for n, word in enumerate(WORDS)} | {
    "a": "Press 1 (one) to hear it.",
    "b": "You have no new mail!",
    "c": "... you have no new",  # a part of b's
    "beep": "[a beep]",
}
SMALL_SPEECH = """
import speech
speech.WIDTH, speech.LAYERS, speech.SECONDS, speech.STRINGS = 8, 1, 2.0, 2
raise SystemExit(speech.main())
"""


@pytest.fixture
def recordings_of_noise(tmp_path):
    """A folder with half a second for each text: silence, noise, silence."""
    (tmp_path / "digits").mkdir()
    for n, name in enumerate(TEXTS):
        sound = np.zeros(4000)
        sound[800 : 2400 + 80 * n] = 9000 * np.random.default_rng(n).uniform(-1, 1, 1600 + 80 * n)
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(sound.astype("<i2"))
    lines = [f"{name}: {text}\n" for name, text in TEXTS.items()]
    (tmp_path / "core-sounds-en.txt").write_text("; a comment\n" + "".join(lines))
    return tmp_path


def test_speech_data_keeps_what_is_held_out_apart(recordings_of_noise, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import speech_data as data

    everything = data.recordings(recordings_of_noise)
    texts = {r.name: r.text for r in everything}
    assert texts["a"] == "press one to hear it"
    assert "beep" not in texts  # nothing is said
    rng = np.random.default_rng(0)
    trained, held_out = data.split(rng, everything, 2.0)
    assert {r.text for r in held_out} == {"press one to hear it", "you have no new mail"}
    assert len(trained) == len(texts) - 2

    sound, labels, samples = data.Rows(rng, trained, 2.0).batch(8)
    assert sound.shape == (8, 16000)
    assert (samples <= 16000).all()
    said = " ".join(map(data.decoded, labels))
    assert set(said.split()) == set(" ".join(r.text for r in trained).split())

    (string,) = data.digit_strings(rng, everything, 1, 5)
    at = np.round(string.joins * data.RATE).astype(int)
    sizes = [1600 + 80 * WORDS.index(word) for word in string.words]
    np.testing.assert_array_equal(at, np.cumsum(sizes)[:-1])
    assert len(string.samples) == sum(sizes)


def test_speech_data_refuses_another_rate(recordings_of_noise, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import speech_data as data

    with wave.open(str(recordings_of_noise / "a.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(400))
    with pytest.raises(SystemExit, match=r"a\.wav: expected 8000 .* 1 channel; got 16000, 16, 2"):
        data.recordings(recordings_of_noise)


@only_all
def test_speech_runs_on_recordings_of_noise(recordings_of_noise):
    """Two steps of a tiny network: it learns nothing, but each part of the program runs."""
    for needed in ("flax", "optax", "matplotlib", "tqdm"):
        pytest.importorskip(needed, reason="examples/requirements.txt is not installed")
    folder = recordings_of_noise
    few = ["--steps", "2", "--batch", "2", "--data", folder, "--output", folder / "speech.png"]
    done = run(sys.executable, "-c", SMALL_SPEECH, *few, PYTHONPATH=f"{ROOT / 'examples'}:{ROOT}")
    assert done.returncode == 1, done.stderr[-2000:]  # it has learnt nothing
    assert "11 recordings to learn" in done.stdout
    assert "said  press one to hear it\n" in done.stdout
    for figure in ("character errors", "alignment", "training", "CC-BY-SA-3.0"):
        assert figure in done.stdout
    assert (folder / "speech.png").stat().st_size > 10_000
