# SPDX-License-Identifier: Apache-2.0
"""Train the reader of handwriting.py on many processes, each with a part of every batch.

    python examples/distributed.py                     one process, all devices it has
    python examples/distributed.py --here 2            two processes on this machine (gloo on CPUs)
    srun python examples/distributed.py --cluster      SLURM, Open MPI, Kubernetes, Cloud TPU: what
                                                       jax.distributed finds out by itself
    python examples/distributed.py --coordinator host:port --processes N --process I    elsewhere

The program is the same in all four. The arrays are global: a batch is spread over a mesh of all
devices of all processes, so the loss of each sequence is computed where its activations are, and
what goes over the wire is the mean and the gradient of the parameters. Every process draws the same
random numbers and keeps its part, so that the costs do not depend on how many there are.

A process that dies ends the others: by an error of the collective that waits for it, or by its
missing heartbeat. Processes started by --here also end when their launcher does.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial

import jax
import numpy as np
from flax import nnx
from handwriting import Batch, Reader, optimizer_for, scans_and_digits, strips, train_step
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

HEARTBEAT = 10  # seconds after which a silent process counts as dead


def spread(batch: Batch, sharding: NamedSharding) -> tuple[jax.Array, ...]:
    """The global batch, as arrays of which each device holds its rows."""
    return tuple(
        jax.make_array_from_callback(x.shape, sharding, partial(np.ndarray.__getitem__, x))
        for x in batch
    )


def train(steps: int, batch: int, seed: int) -> list[float]:
    """Trains on all devices of all processes. Returns the mean cost of every step, in nats."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    if batch % jax.device_count():
        raise SystemExit(f"--batch: expected a multiple of the {jax.device_count()} devices.")
    scans, _, digits, _ = scans_and_digits(seed)
    rng, _ = np.random.default_rng(seed).spawn(2)
    optimizer = optimizer_for(steps)
    # Made by one program, so that every device of every process has the same bits.
    start = jax.jit(
        lambda: (reader := Reader(nnx.Rngs(seed)), optimizer.init(reader)), out_shardings=everywhere
    )
    reader, state = start()
    costs = []
    for step in range(steps):
        part = spread(strips(rng, scans, digits, batch), rows)
        reader, state, cost = train_step(reader, state, part, optimizer)
        costs.append(float(cost))
        if jax.process_index() == 0:
            print(f"step {step}  cost {costs[-1]:.4f} nats", flush=True)
    return costs


def start_here(count: int, arguments: list[str]) -> int:
    """Starts `count` processes on this machine. The first that fails ends all, and so does the end
    of this process, whatever ends it."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`
    common = ["--coordinator", f"localhost:{port}", "--processes", str(count), "--end-with-stdin"]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments, *common, "--process", str(i)],
            stdin=subprocess.PIPE,  # nothing is written to it: the system closes it at our end
        )
        for i in range(count)
    ]
    try:
        while any(child.poll() is None for child in children):
            if any(child.returncode for child in children):
                return 1
            try:
                next(child for child in children if child.poll() is None).wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        return int(any(child.returncode for child in children))
    finally:
        for child in children:
            child.kill()
            child.wait()


def end_with_stdin() -> None:
    """Ends this process when the other end of its standard input is closed: a launcher that is
    killed cannot end its processes itself."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)  # without the handlers of the interpreter's exit, which wait for the others

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Trains, and prints the costs. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500, help="training steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="strips per step, of all processes")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--costs", help="file for the costs of all steps, as JSON")
    parser.add_argument("--here", type=int, help="start so many processes on this machine")
    parser.add_argument("--cluster", action="store_true", help="find the others by environment")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int, help="number of this one, from 0")
    parser.add_argument("--end-with-stdin", action="store_true", help="as --here asks of its own")
    args = parser.parse_args()
    if args.end_with_stdin:
        end_with_stdin()
    for name in ("steps", "batch", "here", "processes"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    if not args.coordinator and not (args.processes is args.process is None):
        parser.error("--processes and --process go with --coordinator")
    if args.here:
        plain = [f"--steps={args.steps}", f"--batch={args.batch}", f"--seed={args.seed}"]
        return start_here(args.here, plain + ([f"--costs={args.costs}"] if args.costs else []))
    if args.cluster or args.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            args.coordinator, args.processes, args.process, heartbeat_timeout_seconds=HEARTBEAT
        )
    costs = train(args.steps, args.batch, args.seed)
    if args.costs and jax.process_index() == 0:
        with open(args.costs, "w") as file:
            json.dump(costs, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
