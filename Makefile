# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up they need in .venv, and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find jax_ctc kernels -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.inl')
TEST_ARGS ?=

.PHONY: demo test lint format clean

# Trains a small network to read handwritten digits with the loss, and draws what it has learnt.
demo: $(VENV)/.installed $(VENV)/.demo-tools
	$(BIN)/python examples/handwriting.py --output handwriting.png

test: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/pytest -n auto $(TEST_ARGS)

lint: $(VENV)/.installed $(VENV)/.lint-tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(filter kernels/%,$(SOURCES))

format: $(VENV)/.lint-tools
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(filter kernels/%,$(SOURCES))

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

$(VENV)/.test-tools: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --group test
	touch $@

$(VENV)/.lint-tools: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --group lint --group test
	touch $@

$(VENV)/.demo-tools: $(VENV)/.made examples/requirements.txt
	$(BIN)/pip install --quiet -r examples/requirements.txt
	touch $@
