# SPDX-License-Identifier: Apache-2.0
"""The code of README.md and of docs/ runs, and prints and raises what it says."""

import doctest
import importlib
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.documents import Checker, blocks, documents, run_block, settings_of_a_user
from support.runs import ALL, ROOT, only_all, sampled

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not in a source tree")

PEERS = ("optax", "torch", "keras", "theano")
MIGRATION = [f"docs/migrate/{peer}.md" for peer in PEERS]
OWN_TESTS = {"docs/recipes.md"}
T, B, V, L, D = 12, 4, 8, 3, 5


def problem():
    """What the blocks of a page take as given."""
    rng = np.random.default_rng(0)
    return {
        "jax": jax,
        "jnp": jnp,
        "jax_ctc": jax_ctc,
        "acts": jnp.asarray(rng.normal(size=(T, B, V)), jnp.float32),
        "labels": jnp.asarray(rng.integers(1, V, size=(B, L)), jnp.int32),
        "lengths": jnp.full(B, T, jnp.int32),
    }


def test_every_page_with_code_is_tested_here():
    tested = {"README.md", "docs/guide.md", "docs/tutorial.md", "docs/decoding.md"}
    tested |= {"docs/scaling.md", *MIGRATION, *OWN_TESTS}
    assert [page for page in documents() if blocks(page) and page not in tested] == []


def test_readme():
    pytest.importorskip("optax", reason="examples/requirements.txt is not installed")
    rng = np.random.default_rng(0)
    names = problem() | {
        "network": lambda params, images: images @ params,
        "head": SimpleNamespace(kernel=np.ones((D, V), "f"), bias=np.zeros(V, "f")),
        "hidden": rng.normal(size=(B, T, D)).astype("f"),
    }
    for code in blocks("README.md"):
        names |= {name: problem()[name] for name in ("acts", "labels", "lengths")}
        run_block(code, names)
    with settings_of_a_user():
        params = jnp.ones((D, V))
        state = names["optimizer"].init(params)
        batch = names["hidden"], names["labels"], names["lengths"]
        _, _, cost = names["train_step"](params, state, *batch)
    assert math.isfinite(cost)


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/decoding.md"])
@sampled(1)
def test_pages(page):
    names = {}
    for code in blocks(page):
        run_block(code, names)


@only_all  # test_vocabulary has the same three ways
@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="jax.set_mesh came with JAX 0.7.1")
def test_three_ways_to_shard_classes():
    names = problem()
    (code,) = blocks("docs/scaling.md")
    start, *ways = re.split("^# (?=[123])", code, flags=re.MULTILINE)
    assert len(ways) == 3
    run_block(start, names)
    with settings_of_a_user():
        expected = jax_ctc.ctc(names["acts"], names["labels"], names["lengths"])
    for way in ways:
        names.pop("costs", None)
        run_block("# " + way, names)
        np.testing.assert_allclose(names["costs"], expected, rtol=1e-6)


def test_the_network_of_the_tutorial_learns_to_read():
    pytest.importorskip("optax", reason="examples/requirements.txt is not installed")
    names, steps = {}, "range(401)"
    code = "\0".join(blocks("docs/tutorial.md"))
    assert steps in code
    for block in (code if ALL else code.replace(steps, "range(2)")).split("\0"):
        run_block(block, names)
    if ALL:  # else the program runs, but has learnt nothing
        assert names["value"] < 1
        assert names["rate"] < 0.15


def costs(code):
    names = {}
    run_block(code, names)
    return np.asarray(names["cost"])


@pytest.mark.parametrize("peer", PEERS)
def test_both_ways_to_migrate_agree(peer):
    _, drop_in, own, *rest = blocks(f"docs/migrate/{peer}.md")
    np.testing.assert_allclose(costs(drop_in), costs(own), rtol=1e-6)
    for code in rest:
        run_block(code, {})


@pytest.mark.parametrize("peer", PEERS)
def test_before_and_after_migration_agree(peer, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    try:
        importlib.import_module(peer)
    except ImportError as error:
        pytest.skip(f"{peer} is not installed: {error}")
    before, after, *_ = blocks(f"docs/migrate/{peer}.md")
    np.testing.assert_allclose(costs(after), costs(before), rtol=1e-6)


NOT_RUN = {"check"}  # its example raises: docs/guide.md has the same


@pytest.mark.parametrize("name", sorted({*jax_ctc.__all__} - {"compat", *NOT_RUN}))
def test_the_example_of_a_docstring_gives_what_it_says(name):
    function = getattr(jax_ctc, name)
    names = problem()
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=names)
    with settings_of_a_user():
        result = doctest.DocTestRunner(Checker(), verbose=False).run(found)
    assert result.failed == 0


def test_the_reference_names_every_public_function():
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in jax_ctc.__all__ if f":: {name}" not in text]
    assert missing == ["compat"]
    assert [peer for peer in PEERS if f":: jax_ctc.compat.{peer}" not in text] == []
