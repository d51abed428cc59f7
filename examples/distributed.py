# SPDX-License-Identifier: Apache-2.0
"""Train the reader of handwriting.py on many processes, each with a part of every batch.

    pip install . -r examples/requirements.txt
    python examples/distributed.py                     one process, all devices it has
    python examples/distributed.py --here 2            two processes on this machine (gloo on CPUs)
    srun python examples/distributed.py --cluster      SLURM, Open MPI, Kubernetes, Cloud TPU: what
                                                       jax.distributed finds out by itself
    python examples/distributed.py --coordinator host:port --processes N --process I    elsewhere

The program is the same in all four cases. The arrays are global: a batch is sharded over a mesh of
all devices of all processes. So the loss of each sequence is computed on the device that holds its
activations. The processes communicate only the mean and the gradient of the parameters. Every
process draws the same random numbers and keeps its own part of the batch, so the costs do not
depend on the number of processes.

If a process dies, the others end too: by an error of the collective that waits for it, or by its
missing heartbeat. Processes started by --here also end when their launcher ends.
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
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from handwriting import Batch, Reader, optimizer_for, scans_and_digits, strips, train_step
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

HEARTBEAT = 10  # seconds after which a silent process counts as dead


def sharded(batch: Batch, sharding: NamedSharding) -> tuple[jax.Array, ...]:
    """The global batch as arrays with this sharding."""
    return tuple(
        jax.make_array_from_callback(x.shape, sharding, partial(np.ndarray.__getitem__, x))
        for x in batch
    )


def train(steps: int, batch: int, seed: int) -> list[float]:
    """Trains on all devices of all processes. Returns the mean cost of every step, in nats."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    by_batch, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    if batch % jax.device_count():
        raise SystemExit(f"--batch: expected a multiple of the {jax.device_count()} devices.")
    scans, _, digits, _ = scans_and_digits(seed)
    rng, _ = np.random.default_rng(seed).spawn(2)
    optimizer = optimizer_for(steps)
    # One program makes the parameters, so that they have the same bits on every device.
    start = jax.jit(
        lambda: (reader := Reader(nnx.Rngs(seed)), optimizer.init(reader)), out_shardings=replicated
    )
    reader, state = start()
    costs = []
    for step in range(steps):
        part = sharded(strips(rng, scans, digits, batch), by_batch)
        reader, state, cost = train_step(reader, state, part, optimizer)
        costs.append(float(cost))
        if jax.process_index() == 0:
            print(f"step {step}  cost {costs[-1]:.4f} nats", flush=True)
    return costs


def start_here(count: int, arguments: list[str]) -> int:
    """Starts `count` processes on this machine. They all end when one of them fails, and when this
    process ends for any reason."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # exits through `finally`
    common = ["--coordinator", f"localhost:{port}", "--processes", str(count), "--end-with-stdin"]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments, *common, "--process", str(i)],
            stdin=subprocess.PIPE,  # never written; the system closes it when we end
            env={**os.environ, "JAX_PLATFORMS": "cpu"},  # else each takes every GPU
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
    """Ends this process when the launcher's end of its standard input is closed. This is needed
    because a launcher that is killed cannot end its processes itself."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)  # skips the exit handlers, which wait for other processes

    threading.Thread(target=wait, daemon=True).start()


def arguments() -> argparse.Namespace:
    """The arguments. Where they do not go together, the program ends and says what it expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500, help="training steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="strips per step, over all processes")
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers (%(default)s)")
    parser.add_argument("--costs", help="file for the costs of all steps, as JSON")
    parser.add_argument("--here", type=int, help="start this many processes on this machine")
    parser.add_argument("--cluster", action="store_true", help="found by jax.distributed itself")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int, help="number of all processes")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument("--end-with-stdin", action="store_true", help="used by --here itself")
    args = parser.parse_args()
    for name in ("steps", "batch", "here", "processes"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    ways = [f"--{name}" for name in ("here", "cluster", "coordinator") if getattr(args, name)]
    if len(ways) > 1:
        parser.error(f"expected one of --here, --cluster, --coordinator, got {' and '.join(ways)}")
    together = ("coordinator", "processes", "process")
    got = [f"--{name}" for name in together if getattr(args, name) is not None]
    if got and len(got) < len(together):
        parser.error(
            f"expected --coordinator, --processes and --process together, got {' and '.join(got)}"
        )
    if got and ":" not in args.coordinator:
        parser.error(f"--coordinator: expected host:port, got {args.coordinator!r}")
    if got and not 0 <= args.process < args.processes:
        parser.error(f"--process: expected 0 to {args.processes - 1}, got {args.process}")
    if args.costs and not args.process:  # process 0 writes the file
        file = Path(args.costs)
        if file.is_dir() or not file.parent.is_dir():
            parser.error(f"--costs: expected a file in a folder that exists, got {file}")
    return args


def main() -> int:
    """Trains, and prints the costs. Returns the exit status."""
    args = arguments()
    if args.end_with_stdin:
        end_with_stdin()
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
