# SPDX-License-Identifier: Apache-2.0
"""Recordings for speech.py: the prompts of the Asterisk telephone system, in English.

Allison Smith recorded them, Digium paid for them, and they are under CC-BY-SA-3.0. Debian has them
in two packages, the sounds and what is said in them. Elsewhere unpack the archive
asterisk-core-sounds-en-wav of the Asterisk project, which has both.
"""

import gzip
import os
import re
import subprocess
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np

CREDIT = "Recordings: Asterisk core sounds, Allison Smith, Digium, Inc., CC-BY-SA-3.0, modified"
PACKAGES = ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en")
RATE = 8000  # samples per second
ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"  # classes 1 to 28; class 0 is the blank
CLASSES = 1 + len(ALPHABET)
DIGITS = "zero one two three four five six seven eight nine".split()
SPOKEN = dict(zip("0123456789", DIGITS, strict=True)) | {"*": "star", "#": "pound"}
HELD_OUT, LONGEST = 50, 6.0  # sentences; seconds of one
FASTEST = 1.15  # speed of the augmentation, and its inverse


class Recording(NamedTuple):
    name: str
    text: str
    samples: np.ndarray  # (N,) float32 within [-1, 1]


def fetched() -> Path:
    """The folder with both packages, unpacked. It is filled the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "jax_ctc", "speech")
    if not (cache / "complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=cache, check=True)
            for package in sorted(cache.glob("*.deb")):
                subprocess.run(["dpkg-deb", "-x", package, cache], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"The recordings were not fetched ({error}). On Debian and Ubuntu `apt-get update` "
                "may be missing. Elsewhere unpack asterisk-core-sounds-en-wav and name the folder "
                "with --data."
            ) from None
        (cache / "complete").touch()
    return cache


def normalised(text: str) -> str:
    """Lower-case letters, apostrophes and single spaces. What is in brackets is not said."""
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", "", text.lower())
    text = re.sub(r"[0-9*#]", lambda sign: f" {SPOKEN[sign[0]]} ", text)
    return " ".join("".join(c if c in ALPHABET else " " for c in text).split())


def recordings(folder: Path) -> list[Recording]:
    """All recordings in which something is said."""
    transcripts = sorted(folder.rglob("core-sounds-en.txt*"))
    one = sorted(folder.rglob("digits/1.wav"))
    if not transcripts or not one:
        raise SystemExit(f"{folder} has no core-sounds-en.txt or no digits/1.wav in any folder.")
    sounds = one[0].parent.parent
    with (gzip.open if transcripts[0].suffix == ".gz" else open)(transcripts[0], "rt") as file:
        lines = [line.split(":", 1) for line in file if ":" in line and not line.startswith(";")]
    result = []
    for name, text in sorted((name.strip(), normalised(text)) for name, text in lines):
        path = sounds / f"{name}.wav"
        if text and path.exists():
            with wave.open(str(path)) as file:
                got = file.getframerate(), 8 * file.getsampwidth(), file.getnchannels()
                if got != (RATE, 16, 1):
                    raise SystemExit(
                        f"{path}: expected {RATE} samples a second, 16 bits, 1 channel; "
                        f"got {got[0]}, {got[1]}, {got[2]}"
                    )
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            result.append(Recording(name, text, samples.astype(np.float32) / 2**15))
    return result


def split(
    rng: np.random.Generator, everything: list[Recording], longest: float
) -> tuple[list[Recording], list[Recording]]:
    """Recordings of at most `longest` seconds for training, and held-out sentences.

    A held-out sentence has at least four words and is no part of another recording's text. So none
    is in training, though phrases of some are.
    """
    short = [r for r in everything if len(r.samples) <= longest * RATE]
    alone = [
        r.name
        for r in short
        if r.text.count(" ") >= 3
        and len(r.samples) <= LONGEST * RATE
        and not any(r.text in other.text for other in everything if other is not r)
    ]
    held_out = set(rng.permutation(alone)[:HELD_OUT])
    return [r for r in short if r.name not in held_out], [r for r in short if r.name in held_out]


def encoded(text: str) -> list[int]:
    return [1 + ALPHABET.index(c) for c in text]


def decoded(labels: np.ndarray) -> str:
    return "".join(ALPHABET[k - 1] for k in labels if k > 0)


def batch_of(rows: list[tuple[str, np.ndarray]], samples: int, most: int | None = None) -> tuple:
    """(B, samples) sound, 0 after the end; (B, most) labels, -1 after the end; (B,) samples."""
    sound = np.zeros((len(rows), samples), np.float32)
    labels = np.full((len(rows), most or max(len(text) for text, _ in rows)), -1)
    for n, (text, row) in enumerate(rows):
        sound[n, : len(row)] = row
        labels[n, : len(text)] = encoded(text)
    return sound, labels, np.array([len(row) for _, row in rows])


class Rows:
    """Training rows: recordings one after another, in random order and at random speeds.

    All rows are as long, so one program is compiled and little of it works on padding. Each
    recording comes once before any comes again.
    """

    def __init__(self, rng: np.random.Generator, trained: list[Recording], seconds: float):
        self.rng, self.trained, self.size = rng, trained, int(seconds * RATE)
        self.waiting: list[Recording] = []

    def row(self) -> tuple[str, np.ndarray]:
        texts, sounds, left = [], [], self.size
        while True:
            if not self.waiting:
                order = self.rng.permutation(len(self.trained))
                self.waiting = [self.trained[n] for n in order]
            following = self.waiting[-1]
            speed = FASTEST ** self.rng.uniform(-1, 1)
            size = int(len(following.samples) / speed)
            if size > left:
                if texts:
                    return " ".join(texts), np.concatenate(sounds)
                size = left  # one recording alone: as fast as the row needs
            self.waiting.pop()
            places = np.linspace(0, len(following.samples) - 1, size)
            samples = np.interp(places, np.arange(len(following.samples)), following.samples)
            texts.append(following.text)
            sounds.append(samples * self.rng.uniform(0.5, 1.5))
            left -= size

    def batch(self, count: int) -> tuple:
        return batch_of([self.row() for _ in range(count)], self.size, 25 * self.size // RATE)


def speech_only(samples: np.ndarray) -> np.ndarray:
    """Cuts the silence off: all that is 35 dB below the loudest 10 ms, at both ends."""
    step = RATE // 100
    pieces = samples[: len(samples) // step * step].reshape(-1, step)
    power = (pieces**2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10**-3.5)
    return samples[loud[0] * step : (loud[-1] + 1) * step]


class DigitString(NamedTuple):
    words: list[str]
    samples: np.ndarray
    joins: np.ndarray  # (len(words) - 1,) seconds at which a word ends and the next one begins


def digit_strings(
    rng: np.random.Generator, everything: list[Recording], count: int, words: int
) -> list[DigitString]:
    """Strings of single recordings of digits without the silence around them."""
    sounds = {r.text: speech_only(r.samples) for r in everything if r.name.startswith("digits/")}
    sounds = [sounds[digit] for digit in DIGITS]
    result = []
    for _ in range(count):
        picks = rng.integers(len(DIGITS), size=words)
        ends = np.cumsum([len(sounds[n]) for n in picks])
        string = np.concatenate([sounds[n] for n in picks])
        result.append(DigitString([DIGITS[n] for n in picks], string, ends[:-1] / RATE))
    return result
