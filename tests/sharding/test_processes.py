# SPDX-License-Identifier: Apache-2.0
"""Eager calls on arrays of which each process has a part."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import jax_ctc

pytestmark = pytest.mark.slow

BATCH = {
    "acts": np.random.default_rng(0).normal(size=(7, 4, 5)).astype(np.float32),
    "labels": np.array([[1, 2, 2], [3, -1, 1], [4, 4, 9], [1, 2, 3]], np.int32),
    "lengths": np.array([7, 5, 6, 7], np.int32),
    "label_lengths": np.array([3, 3, 2, 1], np.int32),
}

PROGRAM = """
import json, sys
import jax, jax_ctc, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
port, me, file = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(me))
mesh = jax.make_mesh((2,), ("data",))
stored = np.load(file)


def spread(x, *spec):
    sharding = NamedSharding(mesh, P(*spec))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def mine(x):
    return np.asarray(x.addressable_shards[0].data).tolist()


def error_of(f, *arguments):
    try:
        f(*arguments)
    except ValueError as error:
        return str(error)


acts, bad = spread(stored["acts"], None, "data"), stored["labels"].copy()
bad[3, 1] = 9
bad[2, 2] = 0
rest = [spread(stored[name], "data") for name in ("labels", "lengths", "label_lengths")]
print(json.dumps({
    "cost": mine(jax_ctc.ctc(acts, *rest)),
    "all frames": mine(jax_ctc.ctc(acts, rest[0], None)),
    "occupancy": mine(jax_ctc.ctc_occupancy(acts, *rest)),
    "bad part": mine(jax_ctc.ctc(acts, spread(bad, "data"), rest[1])),
    "bad everywhere": error_of(jax_ctc.ctc, acts, spread(bad), rest[1]),
    "checked": error_of(jax_ctc.check, acts, spread(bad, "data"), rest[1]),
    "well": error_of(jax_ctc.check, acts, *rest),
}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    file = tmp_path_factory.mktemp("batch") / "batch.npz"
    np.savez(file, **BATCH)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(i), str(file)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def both(said, what):
    return np.array([part for one in said for part in one[what]], np.float32)


def test_each_process_has_the_costs_of_its_sequences(said):
    acts, labels = BATCH["acts"], BATCH["labels"]
    np.testing.assert_array_equal(both(said, "cost"), jax_ctc.ctc(*BATCH.values()))
    everything = np.asarray(jax_ctc.ctc(acts, np.where(labels == 9, 4, labels), None))
    np.testing.assert_array_equal(both(said, "all frames")[[0, 1, 3]], everything[[0, 1, 3]])
    occupancy = np.concatenate([one["occupancy"] for one in said], axis=1)
    # A rounding apart, because one program sums with jit and the other without.
    np.testing.assert_allclose(occupancy, jax_ctc.ctc_occupancy(*BATCH.values()), rtol=0, atol=1e-7)


def test_a_bad_label_in_one_process_is_nan_there_alone(said):
    assert np.isnan(both(said, "bad part")).tolist() == [False, False, True, True]


def test_values_that_all_processes_have_raise_in_all(said):
    for one in said:
        assert one["bad everywhere"].startswith("labels[3, 1] = 9 is not a class")


def test_check_names_the_sequence_of_the_whole_batch_in_all_processes(said):
    for one in said:
        assert one["checked"].startswith("labels[3, 1] = 9 is not a class of acts with V = 5")
        assert one["well"] is None
