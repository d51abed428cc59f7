# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up they need in .venv, and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find jax_ctc kernels cmake -type f -not -name '*.pyc' -not -name '*.so')
FORMATTED = $(filter %.h %.cpp %.inl %.cu %.cuh,$(SOURCES)) $(wildcard tests/*.h tests/*.cpp)
TEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: demo test bench lint format clean

# Trains a small network to read handwritten digits with the loss, and draws what it has learnt.
demo: $(VENV)/.installed $(VENV)/.demo-tools
	$(BIN)/python examples/handwriting.py --output handwriting.png

test: $(VENV)/.installed $(VENV)/.test-tools
	JAX_CUDA_PLUGIN=$(abspath $(VENV)/cuda-plugin) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest -n auto $(TEST_ARGS)

# jax_ctc beside its peers on this machine. `$(BIN)/pip install torch` adds PyTorch to them.
bench: $(VENV)/.installed $(VENV)/.bench-tools
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/.installed $(VENV)/.lint-tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/.lint-tools
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf $(VENV) build

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jax_ctc needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.made $(SOURCES)
	$(BIN)/pip install --quiet .
	touch $@

# XLA's compiler for NVIDIA GPUs goes to a place of its own: it needs no GPU, but JAX would look for one.
$(VENV)/.test-tools: $(VENV)/.installed pyproject.toml
	$(BIN)/pip install --quiet --group test -r examples/requirements.txt
	version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("jaxlib"))') && \
	  $(BIN)/pip install --quiet --upgrade --no-deps --target $(VENV)/cuda-plugin \
	    jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version || \
	  echo "no CUDA plugin for this platform: the tests of programs for GPUs are skipped"
	touch $@

$(VENV)/.lint-tools: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --group lint --group test
	touch $@

$(VENV)/.bench-tools: $(VENV)/.installed pyproject.toml
	$(BIN)/pip install --quiet --group bench
	touch $@

$(VENV)/.demo-tools: $(VENV)/.made examples/requirements.txt
	$(BIN)/pip install --quiet -r examples/requirements.txt
	touch $@
