# SPDX-License-Identifier: Apache-2.0
"""Intermediate CTC with a large vocabulary: two layers of a network share one output layer.

The loss of a middle layer regularises a deep network (Lee and Watanabe, "Intermediate loss
regularization for CTC-based speech recognition", ICASSP 2021). It doubles the cost of the output
layer, and its logits would double the memory. `ctc_linear` stores none.

The data are made up: each of 2,000 words is a random vector that lasts two to four frames, in
noise. So the program needs no download.

    pip install . -r examples/requirements.txt
    python examples/intermediate.py

The program prints the label error rate of held-out sequences for both heads, and the memory that a
step needs with and without stored logits. It exits with 1 unless the rate is below 5 %.
"""

import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from tqdm import trange

from jax_ctc import ctc, ctc_greedy_decode, ctc_linear, label_error_rate

FEATURES, WIDTH = 32, 128
MOST, FRAMES = 12, 48  # words and frames of a sequence
SHORTEST, LONGEST = 2, 4  # frames of a word
NOISE = 0.3

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def sequences(rng: np.random.Generator, vectors: np.ndarray, count: int) -> Batch:
    """Returns (count, FRAMES, FEATURES) features, (count, MOST) labels, -1 after the last word, and
    (count,) frames in use."""
    labels = rng.integers(1, len(vectors), (count, MOST))  # class 0 is the blank
    labels[np.arange(MOST) >= rng.integers(MOST // 2, MOST + 1, (count, 1))] = -1
    features = rng.normal(scale=NOISE, size=(count, FRAMES, FEATURES)).astype(np.float32)
    lengths = np.zeros(count, np.int32)
    for n, row in enumerate(labels):
        words = row[row >= 0]
        frames = np.repeat(words, rng.integers(SHORTEST, LONGEST + 1, len(words)))
        lengths[n] = len(frames)
        features[n, : len(frames)] += vectors[frames]
    return features, labels, lengths


class Encoder(nnx.Module):
    """(B, T, FEATURES) to the (B, T, WIDTH) hidden states of two layers."""

    def __init__(self, classes: int, rngs: nnx.Rngs):
        self.lower = nnx.Conv(FEATURES, WIDTH, (3,), rngs=rngs)
        self.lower_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.upper = nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs)
        self.upper_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, classes, rngs=rngs)  # of both layers

    def __call__(self, features: Array) -> tuple[Array, Array]:
        lower = nnx.gelu(self.lower_norm(self.lower(features)))
        return lower, lower + nnx.gelu(self.upper_norm(self.upper(lower)))


def mean_cost(encoder: Encoder, features: Array, labels: Array, lengths: Array) -> Array:
    """() weighted mean over both layers and the batch, in nats."""
    kernel, bias = encoder.head.kernel[...], encoder.head.bias[...]
    head = partial(ctc_linear, bias=bias, time_major=False)
    lower, upper = (head(hidden, kernel, labels, lengths).mean() for hidden in encoder(features))
    return 0.3 * lower + 0.7 * upper


def stored_mean_cost(encoder: Encoder, features: Array, labels: Array, lengths: Array) -> Array:
    """The same of stored logits."""
    lower, upper = (
        ctc(encoder.head(hidden), labels, lengths, time_major=False).mean()
        for hidden in encoder(features)
    )
    return 0.3 * lower + 0.7 * upper


@partial(jax.jit, static_argnames="optimizer")
def train_step(
    encoder: Encoder, state: optax.OptState, batch: Batch, optimizer: optax.GradientTransformation
) -> tuple[Encoder, optax.OptState, Array]:
    cost, gradient = jax.value_and_grad(mean_cost)(encoder, *batch)
    updates, state = optimizer.update(gradient, state, encoder)
    return optax.apply_updates(encoder, updates), state, cost


def error_rate(acts: Array, labels: np.ndarray, lengths: np.ndarray) -> float:
    """Insertions, deletions and substitutions per true label, of the best class of each frame."""
    errors = label_error_rate(ctc_greedy_decode(acts, lengths, time_major=False), labels)
    return float(errors.distance.sum() / errors.label_count.sum())


def temporaries(cost: object, encoder: Encoder, batch: Batch) -> float:
    """Returns the memory of a step beside its arguments and results, in MB."""
    memory = jax.jit(jax.grad(cost)).lower(encoder, *batch).compile().memory_analysis()
    return memory.temp_size_in_bytes / 1e6 if memory else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps (%(default)s)")
    parser.add_argument("--words", type=int, default=2000, help="different words (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="sequences a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers (%(default)s)")
    args = parser.parse_args()
    for name in ("steps", "words", "batch"):
        if (value := getattr(args, name)) < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")

    rng = np.random.default_rng(args.seed)
    vectors = rng.normal(size=(1 + args.words, FEATURES)).astype(np.float32)
    encoder = Encoder(1 + args.words, nnx.Rngs(args.seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, args.steps // 5, args.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = optimizer.init(encoder)
    with trange(args.steps, desc="training", unit="step") as progress:
        for step in progress:
            batch = sequences(rng, vectors, args.batch)
            encoder, state, cost = train_step(encoder, state, batch, optimizer)
            if step % 20 == 19:
                progress.set_postfix_str(f"cost {cost:.3f} nats")

    features, labels, lengths = batch = sequences(rng, vectors, 200)
    heads = [encoder.head(hidden) for hidden in encoder(jnp.asarray(features))]
    lower, upper = (error_rate(acts, labels, lengths) for acts in heads)
    print(f"label error rate  {upper:.2%}, of the middle layer {lower:.2%}")
    ours, stored = (temporaries(f, encoder, batch) for f in (mean_cost, stored_mean_cost))
    print(f"memory of a step  {ours:.0f} MB, with stored logits {stored:.0f} MB")
    return 0 if upper < 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
