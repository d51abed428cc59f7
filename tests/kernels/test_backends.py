# SPDX-License-Identifier: Apache-2.0
"""The same promises on every instruction set and in pure JAX, and what build_info says of them."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jax_ctc
from support.runs import OPTIMISED, ROOT, only_all, sampled

TESTS, PROJECT = ROOT / "tests", ROOT / "pyproject.toml"
# Files, and which of their tests.
KERNELS = (
    "loss/test_value.py loss/test_known_values.py loss/test_edges.py loss/test_dtypes.py "
    "derivatives/test_gradient.py derivatives/test_zeros.py",
    "",
)
# Pure JAX has no threads of its own, so one number of them does.
SOME = {
    "derivatives/test_zeros": "float32",
    "loss/test_determinism": "(bits_of or same_bits or 3) and not share",
}
PURE = [
    (f"{file}.py", SOME.get(file, ""))
    for file in (
        "loss/test_known_values", "loss/test_edges", "loss/test_dtypes", "loss/test_precision",
        "loss/test_determinism", "loss/test_greedy", "derivatives/test_zeros",
        "derivatives/test_cotangents", "derivatives/test_few_classes", "loss/test_log_scores",
    )
]  # fmt: skip
# Where XLA's optimisation may change what is tested.
MAY_CHANGE = {f"loss/test_{name}.py" for name in ("known_values", "precision", "determinism")}
OF_KERNELS = [
    *sorted(MAY_CHANGE),
    *(f"loss/test_{name}.py" for name in ("value", "dtypes", "linear")),
    *(f"derivatives/test_{name}.py" for name in ("gradient", "second_order")),
]
# In `make test` an instruction set solves random problems of these seeds and cases: compact with
# 9 labels of 17 classes, dense with 18 labels of 9, and one label of 2 in float64.
SEEDS = {34: range(40, 48), 12: [*range(40, 48), *range(80, 84)]}
SOLVES = """
import jax; jax.config.update("jax_enable_x64", True)
import fuzz, jax_ctc
print(jax_ctc.build_info()["cpu"])
for seed, cases in SEEDS.items():
    print(*(found for found in fuzz.answers(seed, cases) if found.complaints), sep="\\n")
"""
FORCED = any(os.environ.get(name) for name in ("JAX_CTC_ISA", "JAX_CTC_KERNELS"))

pytestmark = pytest.mark.skipif(FORCED, reason="this run is one of those started here")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )


INFO = jax_ctc.build_info()
OTHER_SETS = [name for name in INFO["cpu_available"] if name != INFO["cpu"]]


def keeps_the_contract(name, files, some, **environment):
    """The tests as `make test` has them."""
    environment["JAX_CTC_TEST_ALL"] = ""
    said = python("import jax_ctc; print(jax_ctc.build_info()['cpu'])", **environment)
    assert said.stdout.strip() == str(name), said.stderr
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files.split()]
    suite = subprocess.run(
        [*command, "-k", some],
        env={**os.environ, **environment},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert suite.returncode == 0, suite.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_SETS)
def test_every_instruction_set_solves_random_problems(name):
    said = python(f"SEEDS = {SEEDS}\n{SOLVES}", JAX_CTC_ISA=name)
    assert said.stdout.split() == [name], said.stdout + said.stderr[-4000:]


@only_all
@pytest.mark.parametrize("name", OTHER_SETS)
def test_every_instruction_set_keeps_the_contract(name):
    keeps_the_contract(name, *KERNELS, JAX_CTC_ISA=name)


@only_all
@pytest.mark.parametrize("file", OF_KERNELS)
def test_optimised_programs_keep_the_contract(file):
    keeps_the_contract(INFO["cpu"], file, "", XLA_FLAGS=OPTIMISED)


@only_all
@pytest.mark.slow
@pytest.mark.parametrize(("file", "some"), PURE, ids=[file for file, _ in PURE])
def test_pure_jax_keeps_the_contract(file, some):
    """A process for each file, so that two run at the same time. In `make test` test_pure_jax.py
    asks enough, without another process."""
    flags = {"XLA_FLAGS": OPTIMISED} if file in MAY_CHANGE else {}
    keeps_the_contract(None, file, some, JAX_CTC_KERNELS="none", **flags)


@pytest.mark.parametrize(
    ("name", "noted"),
    [("vax", "vax"), ("\udcff", r"\\xff")],  # the second is a byte that no text has
)
def test_an_unknown_instruction_set_is_noted_and_another_runs(name, noted):
    said = python("import jax_ctc; print(ascii(jax_ctc.build_info()['notes']))", JAX_CTC_ISA=name)
    assert f"JAX_CTC_ISA={noted} is not one of baseline" in said.stdout, said.stderr


NO_CUDA = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "jax_ctc._cuda" else find(name, *a)
"""


def test_build_info_says_why_a_part_is_missing():
    show = "import jax_ctc; print(jax_ctc.build_info()['cuda'], jax_ctc.build_info()['notes'])"
    said = python(NO_CUDA + show)
    assert said.stdout.startswith("None")
    advice = "Reinstall jax_ctc where nvcc is found"  # elsewhere JAX has no CUDA
    assert (advice in said.stdout) == (sys.platform == "linux")
    said = python(show, JAX_CTC_KERNELS="none")
    assert "JAX_CTC_KERNELS=none switches all kernels off" in said.stdout, said.stderr


MODULE = "import sys, types, jax; sys.modules['jax_ctc._cpu'] = m = types.ModuleType('_cpu'); "


def test_kernels_built_on_newer_headers_than_jaxlib_are_an_import_error_that_says_so():
    failed = python(MODULE + "m.ffi_api_version = (0, 99); import jax_ctc")
    assert "ImportError: jax_ctc was compiled for XLA's FFI 0.99, but jaxlib" in failed.stderr
    assert "Upgrade jaxlib, or rebuild" in failed.stderr


def test_missing_kernels_are_an_import_error_that_says_so():
    failed = python("import sys; sys.modules['jax_ctc._cpu'] = None; import jax_ctc")
    assert "ImportError: jax_ctc has no compiled kernels here" in failed.stderr
    in_tree = (Path(jax_ctc.__file__).parents[1] / "CMakeLists.txt").is_file()
    assert ("pip install ." if in_tree else "pip install --force-reinstall") in failed.stderr


NOT_INSTALLED = """
from importlib import metadata
distribution = metadata.distribution

def missing(name):
    if name == "jax_ctc":
        raise metadata.PackageNotFoundError(name)
    return distribution(name)

metadata.distribution = missing
import jax_ctc
"""


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("_cpu.cpython-399-some-machine.so", "(_cpu.cpython-399-some-machine.so is for another"),
        ("__init__.py", "lacks _cpu."),
    ],
)
@sampled(1)
def test_a_copy_with_the_kernels_of_another_python_says_so(tmp_path, file, said):
    source = Path(jax_ctc.__file__).parent
    compiled = shutil.ignore_patterns("_cpu.*", "_cuda.*", "__pycache__")
    shutil.copytree(source, tmp_path / "jax_ctc", ignore=compiled)
    (tmp_path / "jax_ctc" / file).touch()
    failed = python(NOT_INSTALLED, PYTHONPATH=str(tmp_path))
    assert "ImportError: jax_ctc has no compiled kernels here" in failed.stderr
    assert said in failed.stderr
    assert "Reinstall jax_ctc for this Python: `pip install" in failed.stderr
    assert "source tree" not in failed.stderr


ORIGINS = {
    "an index": (None, "jax_ctc"),
    "a folder": ('{"url": "file:///a/b%20c", "dir_info": {}}', "file:///a/b%20c"),
    "a repository": (
        '{"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "1"}}',
        "git+https://host/x.git@1",
    ),
    "a folder of a repository": (
        '{"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "1"}, '
        '"subdirectory": "py"}',
        "git+https://host/x.git@1#subdirectory=py",
    ),
    "a wheel": ('{"url": "file:///a/x.whl", "archive_info": {}}', "jax_ctc"),
}


@pytest.mark.parametrize(("noted", "source"), ORIGINS.values(), ids=ORIGINS)
@sampled(2)
def test_advice_to_install_again_names_where_it_came_from(tmp_path, noted, source):
    compiled = shutil.ignore_patterns("_cpu.*", "_cuda.*", "__pycache__")
    shutil.copytree(Path(jax_ctc.__file__).parent, tmp_path / "jax_ctc", ignore=compiled)
    info = tmp_path / f"jax_ctc-{jax_ctc.__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: jax_ctc\nVersion: {jax_ctc.__version__}\n"
    )
    if noted:
        (info / "direct_url.json").write_text(noted)
    failed = python("import jax_ctc", PYTHONPATH=str(tmp_path))
    assert f"`pip install --force-reinstall --no-deps --no-cache-dir {source}`" in failed.stderr


def test_a_module_may_be_run_again():
    """As notebooks do after an edit. JAX registers the name of a result once."""
    again = (
        "for name in ('_align', '_spans', '_greedy', '_error_rate'): reload(getattr(jax_ctc, name))"
    )
    said = python(f"import jax_ctc; from importlib import reload\n{again}\nprint('done')")
    assert said.stdout == "done\n", said.stderr


def test_kernels_are_switched_off_in_any_case_of_letters():
    said = python("import jax_ctc; print(jax_ctc.build_info()['cpu'])", JAX_CTC_KERNELS="None")
    assert said.stdout == "None\n", said.stderr


def test_an_unknown_value_of_the_switch_is_noted():
    said = python(
        "import jax_ctc; print(jax_ctc.build_info()['cpu'], jax_ctc.build_info()['notes'])",
        JAX_CTC_KERNELS="off",
    )
    assert "JAX_CTC_KERNELS=off is ignored: expected none, or nothing." in said.stdout, said.stderr
    assert not said.stdout.startswith("None")


def test_a_jaxlib_without_headers_runs_the_kernels():
    said = python(
        "import jax; jax.ffi.include_dir = lambda: '/nowhere'; import numpy as np, jax_ctc; "
        "print(jax_ctc.build_info()['cpu'], jax_ctc.ctc(np.zeros((4, 1, 3), 'f'), [[1, 2]], [4]))"
    )
    assert said.stdout.endswith("[1.686399]\n"), said.stderr
    assert not said.stdout.startswith("None")


# ---- a checkout without kernels, beside an installation ----------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """The Python sources in a folder of their own."""
    sources = Path(jax_ctc.__file__).parent
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(sources, tmp_path / "checkout" / "jax_ctc", ignore=ignored)
    return tmp_path / "checkout"


@pytest.fixture
def installation(tmp_path):
    """What an installer leaves, in a folder that stands for site-packages. `installed(version)`
    makes it."""

    def install(version):
        site = tmp_path / "site"
        shutil.copytree(Path(jax_ctc.__file__).parent, site / "jax_ctc")
        about = site / f"jax_ctc-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: jax_ctc\nVersion: {version}\n"
        )
        files = [path.relative_to(site) for path in (site / "jax_ctc").rglob("*")]
        (about / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        return site

    return install


def in_folder(folder, site, code):
    """Runs code as if started in `folder`, with `site` before all that is really installed."""
    paths = os.pathsep.join([str(folder), str(site)])
    return python(code, PYTHONPATH=paths)


def test_a_checkout_runs_the_kernels_of_an_installation_of_its_version(checkout, installation):
    site = installation(jax_ctc.__version__)
    said = in_folder(
        checkout,
        site,
        "import jax_ctc; print(jax_ctc.__file__); print(jax_ctc._kernels.cpu.__file__); "
        "print(jax_ctc.build_info()['notes'])",
    )
    ours, kernels, notes = said.stdout.splitlines()
    assert Path(ours).is_relative_to(checkout)
    assert Path(kernels).is_relative_to(site)
    assert f"The compiled kernels are those of the installation: {site / 'jax_ctc'}." in notes


def test_a_checkout_refuses_the_kernels_of_another_version(checkout, installation):
    failed = in_folder(checkout, installation("0.0.1"), "import jax_ctc")
    message = failed.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: these sources of jax_ctc ({checkout / 'jax_ctc'})")
    assert f"are version {jax_ctc.__version__}" in message
    assert "the installed jax_ctc is version 0.0.1. Run `pip install .` again" in message


@pytest.mark.skipif(not PROJECT.is_file(), reason="not in a source tree")
def test_the_version_is_that_of_the_project():
    assert tomllib.loads(PROJECT.read_text())["project"]["version"] == jax_ctc.__version__
    assert jax_ctc.build_info()["version"] == jax_ctc.__version__
