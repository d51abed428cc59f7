# SPDX-License-Identifier: Apache-2.0
"""Read lines of handwritten digits: a small convolutional network trained with `jax_ctc.ctc`.

A training example is a strip and its digits from left to right, without their positions. The scans
are scikit-learn's `load_digits`. A fifth of them, drawn at random and stratified by digit, is used
for the held-out strips only. Both parts have the same writers, so the error rate is that of new
scans, not of new writers.

    pip install . -r examples/requirements.txt
    python examples/handwriting.py

The program prints the label error rate, writes a picture, and exits with 1 unless the rate is below
2 %.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from jax import Array
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

from jax_ctc import ctc, ctc_greedy_decode, ctc_occupancy, label_error_rate

SIDE = 8  # a scan is SIDE x SIDE pixels
FEWEST, MOST = 4, 8  # digits in a strip
NEAREST, FARTHEST = -3, 3  # pixels between two scans; they overlap where negative
MARGIN = 2
HEIGHT = SIDE + 4  # leaves each digit room to sit higher or lower
WIDTH = MARGIN + MOST * SIDE + (MOST - 1) * FARTHEST + MARGIN
STRIDE = 2  # columns of pixels per frame
BLANK = 10  # classes 0 to 9 are the digits
CLASSES = 11
HELD_OUT = 1000  # strips
QUIET = "#9a9a9a"  # colour of the less important parts of the picture
FLOOR = 1e-3  # probabilities below it are drawn black: they are the network's noise

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def strips(rng: np.random.Generator, scans: np.ndarray, digits: np.ndarray, count: int) -> Batch:
    """Composes strips from (N, SIDE, SIDE) scans of (N,) digits.

    Returns:
      (count, HEIGHT, WIDTH) images, 0 on paper and up to 1 in ink; (count, MOST) labels, -1 after
      the last digit; (count,) frames in use, because each strip is as wide as its digits need.
    """
    shape = (count, MOST)
    used = np.arange(MOST) < rng.integers(FEWEST, MOST + 1, (count, 1))
    picks = rng.integers(len(scans), size=shape)
    ink = rng.uniform(0.6, 1.0, shape)
    top = rng.integers(HEIGHT - SIDE + 1, size=shape)
    pitch = SIDE + rng.integers(NEAREST, FARTHEST + 1, shape)
    pitch[:, 0] = MARGIN
    left = np.cumsum(pitch, axis=1)

    images = np.zeros((count, HEIGHT, WIDTH), np.float32)
    for at in zip(*np.nonzero(used), strict=True):
        y, x = top[at], left[at]
        window = images[at[0], y : y + SIDE, x : x + SIDE]
        np.maximum(window, ink[at] * scans[picks[at]], out=window)
    widths = np.max(left * used, axis=1) + SIDE + MARGIN
    return images, np.where(used, digits[picks], -1), widths // STRIDE


def scans_and_digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scans (N, SIDE, SIDE) for training, held-out scans, and the digits (N,) of both."""
    pixels, digits = load_digits(return_X_y=True)
    scans = pixels.reshape(-1, SIDE, SIDE).astype(np.float32) / 16
    return train_test_split(scans, digits, test_size=0.2, stratify=digits, random_state=seed)


class Reader(nnx.Module):
    """(B, HEIGHT, W) images to (B, W // STRIDE, CLASSES) activations."""

    def __init__(self, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, rngs=rngs)
        self.strokes = conv(1, 16, (3, 3))
        self.corners = conv(16, 32, (3, 3))
        self.shapes = conv(32, 64, (3, 3))
        self.columns = conv(HEIGHT // 4 * 64, 96, (3,))
        self.column_norm = nnx.LayerNorm(96, rngs=rngs)
        self.context = conv(96, 96, (3,))
        self.context_norm = nnx.LayerNorm(96, rngs=rngs)
        self.classes = nnx.Linear(96, CLASSES, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        x = nnx.relu(self.strokes(images[..., None]))
        x = nnx.max_pool(x, (2, STRIDE), (2, STRIDE))
        x = nnx.relu(self.corners(x))
        x = nnx.max_pool(x, (2, 1), (2, 1))
        x = nnx.relu(self.shapes(x))
        x = x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)  # one vector per column
        x = nnx.relu(self.column_norm(self.columns(x)))
        x += nnx.relu(self.context_norm(self.context(x)))
        return self.classes(x)


def mean_cost(reader: Reader, images: Array, labels: Array, lengths: Array) -> Array:
    """() mean over the batch of -log p(labels | image), in nats."""
    return ctc(reader(images), labels, lengths, blank=BLANK, time_major=False).mean()


@partial(jax.jit, static_argnames="optimizer")
def train_step(
    reader: Reader, state: optax.OptState, batch: Batch, optimizer: optax.GradientTransformation
) -> tuple[Reader, optax.OptState, Array]:
    """One step of the optimizer. The reader is a pytree, so plain jax.jit and optax work."""
    cost, gradient = jax.value_and_grad(mean_cost)(reader, *batch)
    updates, state = optimizer.update(gradient, state, reader)
    return optax.apply_updates(reader, updates), state, cost


def optimizer_for(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 5, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))


def train(reader: Reader, compose: Callable[[], Batch], steps: int) -> Reader:
    """Trains on `steps` batches from `compose`."""
    optimizer = optimizer_for(steps)
    state = optimizer.init(reader)
    with trange(steps, desc="training", unit="step") as progress:
        for step in progress:
            reader, state, cost = train_step(reader, state, compose(), optimizer)
            if step % 20 == 19:
                progress.set_postfix_str(f"cost {cost:.3f} nats")
    return jax.block_until_ready(reader)


def digits_of(labels: Array | np.ndarray) -> list[list[int]]:
    """The rows of labels without their padding."""
    return [row[row >= 0].tolist() for row in np.asarray(labels)]


def draw(
    ax: Axes,
    image: np.ndarray,
    seen: np.ndarray,
    forced: np.ndarray,
    read: list[int],
    truth: list[int],
) -> AxesImage:
    """Draws a strip above its frames, both along one axis of time.

    Args:
      image: (HEIGHT, T * STRIDE) strip.
      seen: (T, CLASSES) softmax of the network, drawn as shades.
      forced: (T, CLASSES) occupancies given the truth. Those of the digits are drawn as rings.
      read, truth: digits. The reading is drawn in red if it is wrong.
    """
    image = np.pad(image, ((1, 1), (0, 0)))  # room above and below for the interpolation
    frames, top = len(seen), -0.5 - len(image) / STRIDE
    seen = np.maximum(seen, FLOOR)
    shades = ax.imshow(seen.T, cmap="magma", norm=LogNorm(FLOOR, 1), extent=(0, frames, 10.5, -0.5))
    ax.imshow(image, cmap="gray", interpolation="bicubic", extent=(0, frames, -0.5, top))
    t, digit = np.nonzero(forced[:, :BLANK] > 0.02)
    ax.scatter(
        t + 0.5, digit, 75 * forced[t, digit], facecolors="none", edgecolors="#00b4d8", lw=1.6
    )

    said, stands = ("".join(map(str, digits)) for digits in (read, truth))
    style = {"family": "monospace", "size": 14}
    ax.text(0, top - 0.5, f"reads {said}", color="white" if read == truth else "#ff6b5e", **style)
    ax.text(frames, top - 0.5, f"truth {stands}", color=QUIET, ha="right", **style)
    ax.set_yticks(range(CLASSES), [*map(str, range(BLANK)), "blank"], size=9.5, color=QUIET)
    ax.set_xticks(range(0, frames + 1, 5))
    ax.set_xlabel("frame", size=11, color=QUIET, labelpad=1)
    ax.set(ylim=(10.5, top), frame_on=False)
    ax.tick_params(axis="x", length=3, labelsize=11, colors=QUIET)
    ax.tick_params(axis="y", length=0)
    return shades


def picture(batch: Batch, acts: Array, read: list[list[int]], truth: list[list[int]]) -> Figure:
    """Three long strips that were read right and one that was not, from (N, T, CLASSES) `acts`."""
    images, labels, lengths = batch
    seen = np.asarray(jax.nn.softmax(acts))
    forced = np.asarray(ctc_occupancy(acts, labels, lengths, blank=BLANK, time_major=False))
    long = [n for n in range(len(read)) if len(truth[n]) == MOST]
    right = [n for n in long if read[n] == truth[n]]
    wrong = [n for n in long if read[n] != truth[n]]
    chosen = [*right[:3], *wrong, *right[3:]][:4]

    figure = Figure(figsize=(12, 7.4), layout="constrained", facecolor="black")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots(2, 2, subplot_kw={"xlim": (0, max(lengths[chosen]))})
    for ax, n in zip(axes.flat, chosen, strict=True):
        T = lengths[n]
        shades = draw(ax, images[n, :, : T * STRIDE], seen[n, :T], forced[n, :T], read[n], truth[n])
    bar = figure.colorbar(shades, ax=axes, location="bottom", shrink=0.25, aspect=40)
    bar.set_label(
        "shade: what the network sees in the frame (softmax)"
        "      ring: where each true digit is (ctc_occupancy)",
        color=QUIET,
        size=12,
    )
    bar.ax.tick_params(colors=QUIET, labelsize=11)
    bar.outline.set_visible(False)
    return figure


def main() -> int:
    """Trains, measures and draws. Returns the exit status: 0 if the error rate is below 2 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="training steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="strips per step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers (%(default)s)")
    parser.add_argument("--output", default="handwriting.png", help="picture (%(default)s)")
    args = parser.parse_args()
    for name in ("steps", "batch"):
        if (value := getattr(args, name)) < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    if not Path(args.output).resolve().parent.is_dir():
        parser.error(f"--output: there is no folder {Path(args.output).parent}")

    scans, unseen_scans, digits, unseen_digits = scans_and_digits(args.seed)
    train_rng, test_rng = np.random.default_rng(args.seed).spawn(2)
    held_out = strips(test_rng, unseen_scans, unseen_digits, HELD_OUT)

    start = time.perf_counter()
    compose = partial(strips, train_rng, scans, digits, args.batch)
    reader = train(Reader(nnx.Rngs(args.seed)), compose, args.steps)
    seconds = time.perf_counter() - start

    images, labels, lengths = held_out
    acts = reader(images)
    read = ctc_greedy_decode(acts, lengths, blank=BLANK, time_major=False)
    errors = label_error_rate(read, labels)
    rate = errors.distance.sum() / errors.label_count.sum()
    picture(held_out, acts, digits_of(read.labels), digits_of(labels)).savefig(args.output)
    print(f"label error rate  {rate:.2%} on {HELD_OUT} held-out strips")
    print(f"training          {seconds:.0f} s, compilation included, on {jax.devices()[0]}")
    print(f"picture           {args.output}")
    return 0 if rate < 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
