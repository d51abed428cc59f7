# SPDX-License-Identifier: Apache-2.0
"""Real speech: learn to write down what a voice says, then find when it said it.

The recordings are the English prompts of the Asterisk telephone system: 24 minutes of one voice
(speech_data.py). A small convolutional network reads log-mel features and is trained with
`jax_ctc.ctc` on their texts, character by character. Held-out sentences are never in training.

    pip install . -r examples/requirements.txt
    python examples/speech.py

The program prints the character error rate of the held-out sentences, read by the best path and by
a beam search. Then it aligns strings of digits with `jax_ctc.ctc_align`. They are composed of
single recordings, so the time of each boundary between two words is known. It prints the median
error of the boundaries and draws one string. The recordings of the digits are in training, but with
the silence around them. The program exits with 1 unless the error rate is below 30 %.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import speech_data as data
from flax import nnx
from jax import Array
from matplotlib.figure import Figure
from tqdm import trange

from jax_ctc import (
    ctc,
    ctc_align,
    ctc_beam_search_decode,
    ctc_greedy_decode,
    ctc_occupancy,
    label_error_rate,
    label_spans,
)

WINDOW, HOP, FFT = data.RATE // 40, data.RATE // 100, 256  # samples: 25 ms every 10 ms
BANDS, LOWEST, HIGHEST = 40, 80.0, 3900.0  # of the mel scale, in Hz
STRIDE = 3  # feature frames per frame of the network
FRAME = STRIDE * HOP  # samples
WIDTH, LAYERS, TAPS = 192, 6, 9
SECONDS = 24.0  # of a training row
WORDS, STRINGS = 6, 100  # digits of a string, strings
QUIET = "#8a8a8a"  # colour of the less important parts of the picture


def mel_filters() -> np.ndarray:
    """(FFT // 2 + 1, BANDS) triangles that are equally wide on the mel scale."""
    edges = np.linspace(*(1127 * np.log1p(hz / 700) for hz in (LOWEST, HIGHEST)), BANDS + 2)
    hz = np.fft.rfftfreq(FFT, 1 / data.RATE)
    mel = 1127 * np.log1p(hz / 700)[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(sound: Array) -> Array:
    """(B, N) samples to (B, N // HOP, BANDS) features. Frame t is centred on (t + 1/2) HOP."""
    frames = sound.shape[1] // HOP
    margin = (WINDOW - HOP) // 2
    sound = jnp.pad(sound, ((0, 0), (margin, margin)))
    at = HOP * np.arange(frames)[:, None] + np.arange(WINDOW)
    spectrum = jnp.fft.rfft(sound[:, at] * np.hanning(WINDOW).astype(np.float32), FFT)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return (jnp.log(power @ mel_filters() + 1e-4) + 4) / 4  # about within -1.5 and 3


class Listener(nnx.Module):
    """(B, T, BANDS) features to (B, T // STRIDE, CLASSES) activations."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(BANDS, WIDTH, (TAPS,), strides=STRIDE, rngs=rngs)
        self.first_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(WIDTH, WIDTH, (TAPS,), rngs=rngs) for _ in range(LAYERS)])
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(LAYERS)])
        self.classes = nnx.Linear(WIDTH, data.CLASSES, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        x = nnx.relu(self.first_norm(self.first(features)))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x += nnx.relu(norm(layer(x)))
        return self.classes(x)


def masked(key: Array, features: Array) -> Array:
    """SpecAugment (Park et al., Interspeech 2019): a stretch of time in two seconds and two groups
    of bands are 0."""

    def stripes(key: Array, size: int, count: int, widest: int) -> Array:
        starts, widths = jax.random.split(key)
        shape = (len(features), 1, count)
        start = jax.random.randint(starts, shape, 0, size)
        place = jnp.arange(size)[None, :, None] - start
        return ((place >= 0) & (place < jax.random.randint(widths, shape, 0, widest))).any(-1)

    in_time, in_bands = jax.random.split(key)
    times = stripes(in_time, features.shape[1], max(1, features.shape[1] // 200), 12)
    bands = stripes(in_bands, BANDS, 2, 8)
    return jnp.where(times[:, :, None] | bands[:, None], 0, features)


def mean_cost(listener: Listener, key: Array, sound: Array, labels: Array, samples: Array) -> Array:
    """() nats per character."""
    acts = listener(masked(key, log_mel(sound)))
    cost = ctc(acts, labels, samples // FRAME, time_major=False)
    return cost.sum() / (labels >= 0).sum()


@partial(jax.jit, static_argnames="optimizer")
def train_step(listener, state, key, batch, optimizer):
    """One step of the optimizer. The listener is a pytree, so plain jax.jit and optax work."""
    cost, gradient = jax.value_and_grad(mean_cost)(listener, key, *batch)
    updates, state = optimizer.update(gradient, state, listener)
    return optax.apply_updates(listener, updates), state, cost


def train(listener: Listener, rows: data.Rows, steps: int, batch: int, seed: int) -> Listener:
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))
    state = optimizer.init(listener)
    keys = jax.random.split(jax.random.key(seed), steps)
    with trange(steps, desc="training", unit="step") as progress:
        for step in progress:
            made = rows.batch(batch)
            listener, state, cost = train_step(listener, state, keys[step], made, optimizer)
            if step % 10 == 9:
                progress.set_postfix_str(f"{cost:.3f} nats per character")
    return jax.block_until_ready(listener)


@jax.jit
def acts_of(listener: Listener, sound: Array) -> Array:
    return listener(log_mel(sound))


def error_rates(listener: Listener, sentences: list[data.Recording]) -> tuple[float, float]:
    """Character error rates of the best path and of a beam search. Prints some readings."""
    rows = [(r.text, r.samples) for r in sentences]
    sound, labels, samples = data.batch_of(rows, max(len(row) for _, row in rows))
    acts, lengths = acts_of(listener, sound), samples // FRAME
    best = ctc_greedy_decode(acts, lengths, time_major=False)
    found = ctc_beam_search_decode(acts, lengths, beam_width=16, time_major=False)
    rates = []
    for read in (best, found):
        errors = label_error_rate(read, labels)
        rates.append(float(errors.distance.sum() / errors.label_count.sum()))
    for text, read in [*zip((r.text for r in sentences), found.labels[:, 0], strict=True)][:5]:
        print(f"  said  {text}\n  read  {data.decoded(np.asarray(read))}")
    return rates[0], rates[1]


class Aligned(NamedTuple):
    """What is known of a batch of digit strings after alignment."""

    sound: np.ndarray  # (B, N)
    frames: np.ndarray  # (B,) in use
    start: np.ndarray  # (B, L) first frame of each character
    end: np.ndarray  # (B, L) the frame after its last
    occupancy: np.ndarray  # (B, T, CLASSES)
    errors: np.ndarray  # (B, words - 1) of the boundaries, in seconds


def align(listener: Listener, strings: list[data.DigitString]) -> Aligned:
    """Aligns the characters. A boundary between words is taken to be in the middle between the last
    character of one and the first character of the next."""
    rows = [(" ".join(string.words), string.samples) for string in strings]
    sound, labels, samples = data.batch_of(rows, max(len(row) for _, row in rows))
    acts, lengths = acts_of(listener, sound), samples // FRAME
    alignment = ctc_align(acts, labels, lengths, time_major=False)
    start, end = map(np.asarray, label_spans(alignment, labels.shape[1], time_major=False))
    occupancy = ctc_occupancy(acts, labels, lengths, time_major=False)
    errors = []
    for n, string in enumerate(strings):
        spaces = np.flatnonzero(labels[n] == data.encoded(" ")[0])
        middles = (end[n, spaces - 1] + start[n, spaces + 1]) / 2 * FRAME / data.RATE
        errors.append(middles - string.joins)
    return Aligned(sound, lengths, start, end, np.asarray(occupancy), np.array(errors))


def picture(aligned: Aligned, strings: list[data.DigitString], n: int) -> Figure:
    """String n: waveform, spectrogram and aligned characters, and the occupancies."""
    string, T = strings[n], aligned.frames[n]
    text, seconds = " ".join(string.words), FRAME / data.RATE
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    wave, mel, where = figure.subplots(3, 1, sharex=True, height_ratios=(2, 4, 5))

    wave.plot(np.arange(len(string.samples)) / data.RATE, string.samples, lw=0.4, color=QUIET)
    wave.set(yticks=[], ylim=(-1.6, 1), title=data.CREDIT)
    features = np.asarray(log_mel(aligned.sound[n : n + 1]))[0, : T * STRIDE].T
    extent = (0, T * seconds, 0, BANDS)
    style = {"aspect": "auto", "interpolation": "nearest"}
    mel.imshow(features, cmap="magma", origin="lower", extent=extent, **style)
    mel.set(yticks=[], ylabel="log-mel features")
    spans = zip(text, aligned.start[n], aligned.end[n], strict=False)
    for character, start, end in [span for span in spans if span[0] != " "]:
        middle = (start + end) / 2 * seconds
        wave.axvspan(start * seconds, end * seconds, 0, 0.25, color="#00b4d8", alpha=0.5, lw=0)
        wave.text(middle, -1.1, character, ha="center", va="center", family="monospace", size=11)

    used = sorted(set(text) - {" "}, reverse=True)
    occupancy = aligned.occupancy[n, :T][:, [data.encoded(c)[0] for c in used]].T
    where.imshow(occupancy, cmap="Blues", extent=(0, T * seconds, len(used), 0), **style)
    where.set_yticks(np.arange(len(used)) + 0.5, used, family="monospace")
    where.set(xlabel="seconds", ylabel="occupancies of the characters")
    for ax in (wave, mel, where):
        for join in string.joins:
            ax.axvline(join, color="#ff6b5e", lw=1, ls="--")
    return figure


def main() -> int:
    """Trains, measures and draws. Returns the exit status: 0 if the error rate is below 30 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1800, help="training steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=3, help="rows per step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder of recordings (else fetched)")
    parser.add_argument("--output", default="speech.png", help="picture (%(default)s)")
    args = parser.parse_args()
    for name in ("steps", "batch"):
        if (value := getattr(args, name)) < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    if not Path(args.output).resolve().parent.is_dir():
        parser.error(f"--output: there is no folder {Path(args.output).parent}")

    everything = data.recordings(args.data or data.fetched())
    split_rng, train_rng, string_rng = np.random.default_rng(args.seed).spawn(3)
    trained, held_out = data.split(split_rng, everything, SECONDS)
    minutes = sum(len(r.samples) for r in trained) / data.RATE / 60
    print(data.CREDIT)
    print(f"{len(trained)} recordings to learn, {minutes:.0f} minutes; {len(held_out)} held out")

    start = time.perf_counter()
    rows = data.Rows(train_rng, trained, SECONDS)
    listener = train(Listener(nnx.Rngs(args.seed)), rows, args.steps, args.batch, args.seed)
    seconds = time.perf_counter() - start

    best_path, beam = error_rates(listener, held_out)
    strings = data.digit_strings(string_rng, everything, STRINGS, WORDS)
    aligned = align(listener, strings)
    away, frame = 1000 * np.abs(aligned.errors), 1000 * FRAME / data.RATE
    picture(aligned, strings, 0).savefig(args.output, dpi=80)
    characters = sum(len(r.text) for r in held_out)
    print(f"character errors  {best_path:.1%} by the best path, {beam:.1%} by the beam search,")
    print(f"                  of {characters} characters in {len(held_out)} held-out sentences")
    print(f"alignment         {np.median(away):.0f} ms median error of {away.size} boundaries;")
    print(
        f"                  90 % within {np.percentile(away, 90):.0f} ms; a frame is {frame:.0f} ms"
    )
    print(f"training          {seconds:.0f} s, compilation included, on {jax.devices()[0]}")
    print(f"picture           {args.output}")
    return 0 if beam < 0.3 else 1


if __name__ == "__main__":
    sys.exit(main())
