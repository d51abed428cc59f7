# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up they need in .venv, and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most modules are never imported, so pip compiles none: Python compiles a module when it is imported. That halves the time.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --no-compile
SOURCES := pyproject.toml CMakeLists.txt $(shell find jax_ctc kernels cmake -type f -not -name '*.pyc' -not -name '*.so')
FORMATTED = $(filter %.h %.cpp %.cu %.cuh,$(SOURCES)) $(wildcard benchmarks/cpu/*.cpp $(addprefix tests/kernels/,*.h *.cpp emulator/*))
TEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
SPEECH_ARGS ?=

# Which kernels a checkout compiles. `here`, for this machine: CUDA kernels for the GPUs that are visible, none without one.
# `nvcc`, for `make test-all`: also where only nvcc is found, for one architecture, because tests read what nvcc and XLA make
# of them without a GPU. JAX_CTC_CUDA=OFF, AUTO or ON takes the place of both: no CUDA kernels; those for all architectures
# where nvcc is found; those or an error.
JAX_CTC_CUDA ?=
JAX_CTC_TEST_ALL ?=
ALL := $(filter-out 0,$(JAX_CTC_TEST_ALL))
HERE := $(VENV)/.installed-$(or $(JAX_CTC_CUDA),here)
TESTED := $(VENV)/.installed-$(or $(JAX_CTC_CUDA),$(if $(ALL),nvcc,here))
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | awk '$$1 >= 8 {print 10 * $$1}' | sort -u)

space := $() $()
architectures-here = $(subst $(space),;,$(strip $(GPUS)))
architectures-nvcc = $(or $(architectures-here),90)
cuda-here = $(if $(GPUS),AUTO,OFF)
cuda-nvcc = AUTO
why-here = $(if $(GPUS),CUDA kernels for $(architectures-here) (JAX_CTC_CUDA=OFF leaves them out),no CUDA kernels: no NVIDIA GPU that they support is visible (JAX_CTC_CUDA=AUTO compiles them))
why-nvcc = CUDA kernels for $(architectures-nvcc) where nvcc is found (JAX_CTC_CUDA=OFF leaves them and their tests out)

# Two pips at once would break the environment.
.NOTPARALLEL:
.PHONY: demo speech test test-all fuzz bench gpu-paper lint format release-check clean

# Trains a small network to read handwritten digits with the loss, and draws what it has learnt.
demo: $(HERE) $(VENV)/.demo-tools
	@echo '== training the network, half a minute on two cores'
	$(BIN)/python examples/handwriting.py --output handwriting.png

# Real speech: a small network learns to write down the recordings of a Debian package, which are fetched.
speech: $(HERE) $(VENV)/.demo-tools
	@echo '== training the network, about five minutes on two cores'
	$(BIN)/python examples/speech.py --output speech.png $(SPEECH_ARGS)

test: $(TESTED) $(VENV)/.test-tools $(if $(ALL),$(VENV)/.cuda-plugin)
	JAX_CUDA_PLUGIN="$(abspath $(VENV)/cuda-plugin)" PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest -n auto --dist worksteal $(TEST_ARGS)

# With the long variants of tests, and with CUDA kernels where nvcc is found.
test-all:
	@$(MAKE) --no-print-directory test JAX_CTC_TEST_ALL=1

# Random problems against an oracle, for a minute. FUZZ_ARGS="--seconds 600 --seed 7"
fuzz: $(HERE)
	$(BIN)/python tests/fuzz.py $(FUZZ_ARGS)

# jax_ctc beside its peers on this machine. `$(BIN)/pip install torch` adds PyTorch to them.
bench: $(HERE) $(VENV)/.bench-tools
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Instructions of the CPU kernels a row, which no noise can move: by callgrind where valgrind is found, and of the kernels
# for ARM by qemu (Debian: g++-aarch64-linux-gnu, qemu-user-static).
instructions: $(HERE)
	$(BIN)/python -m benchmarks.cpu.instructions

.PHONY: instructions pictures docs docs-serve

# Draws the pictures of the documents: those of the benchmarks from the stored results, and the demonstration's.
pictures: $(HERE) $(VENV)/.bench-tools $(VENV)/.demo-tools
	$(BIN)/python -m benchmarks.pictures
	$(BIN)/python examples/handwriting.py --output docs/handwriting.png

# The documentation site in build/site. A warning is an error.
docs: $(VENV)/.docs-tools
	$(BIN)/python docs/site/pages.py build/site

# The site on http://localhost:8000.
docs-serve: docs
	$(BIN)/python -m http.server --directory build/site --bind localhost 8000

# What the CUDA kernels should take on an H100 and an H200, off their machine code: no GPU is needed.
gpu-paper: $(VENV)/.test-tools
	$(BIN)/python -m benchmarks.gpu.paper

lint: $(HERE) $(VENV)/.lint-tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --quiet --offline --min-severity medium .github

format: $(VENV)/.lint-tools
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(FORMATTED)

# The rehearsal of a release on Linux: dist/, checked and installed where there is no compiler. Five minutes on two cores.
release-check:
	PYTHON=$(PYTHON) bash .ci/release-check

clean:
	rm -rf $(VENV) build dist

$(VENV)/.build-tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jax_ctc needs Python 3.11 or later: make PYTHON=...")'
	@echo '== a virtual environment with JAX and the tools of the build in $(VENV), a quarter of a minute'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) jax 'scikit-build-core>=1.0' 'pybind11>=2.13' 'cmake>=3.23' ninja
	@touch $@

# pip would build in an environment of its own, with a jaxlib of its own, from nothing. Here JAX is downloaded once, and
# what is compiled is kept in $(VENV)/build for the next time.
$(VENV)/.installed-%: $(VENV)/.build-tools $(SOURCES)
	@echo '== compiling jax_ctc, half a minute on two cores, and as long again for each architecture of GPUs'
	@echo '   $(or $(why-$*),JAX_CTC_CUDA=$*)'
	@$(PIP) --no-build-isolation --config-settings build-dir=$(VENV)/build \
	  --config-settings cmake.define.JAX_CTC_CUDA=$(or $(cuda-$*),$*) \
	  --config-settings 'cmake.define.CMAKE_CUDA_ARCHITECTURES=$(architectures-$*)' .
	@rm -f $(VENV)/.installed-*
	@touch $@ $(if $(filter nvcc,$*),$(HERE))
	@$(BIN)/python -P -c 'from jax_ctc import build_info; x = build_info(); print("   CPU:", x["cpu"], " CUDA:", x["cuda"])'

$(VENV)/.test-tools: $(VENV)/.pip examples/requirements.txt
	@echo '== what the tests need, a quarter of a minute'
	@$(PIP) --group test -r examples/requirements.txt
	@touch $@

# XLA's compiler for NVIDIA GPUs goes to a place of its own: it needs no GPU, but JAX would look for one.
$(VENV)/.cuda-plugin: $(VENV)/.test-tools
	@echo "== XLA's compiler for NVIDIA GPUs, a quarter of a minute"
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("jaxlib"))') && \
	  $(PIP) --upgrade --no-deps --target $(VENV)/cuda-plugin \
	    jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version || \
	  echo "no CUDA plugin for this platform: the tests of programs for GPUs are skipped"
	@touch $@

$(VENV)/.lint-tools: $(VENV)/.pip
	@echo '== what the style checks need'
	@$(PIP) --group lint --group test
	@touch $@

$(VENV)/.docs-tools: $(VENV)/.pip
	@echo '== what the documentation site needs'
	@$(PIP) --group docs
	@touch $@

$(VENV)/.bench-tools: $(VENV)/.pip
	@echo '== what the benchmarks need'
	@$(PIP) --group bench
	@touch $@

$(VENV)/.demo-tools: $(VENV)/.build-tools examples/requirements.txt
	@echo '== what the demonstration needs, a quarter of a minute'
	@$(PIP) -r examples/requirements.txt
	@touch $@

# A pip that knows --group.
$(VENV)/.pip: $(VENV)/.build-tools pyproject.toml
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@
