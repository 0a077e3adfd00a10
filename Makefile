# make demo   see it work, from nothing
# make test   run the tests, from nothing
PYTHON ?= python3
VENV ?= .venv
# Each has a TensorFlow of its own, which takes some gigabytes.
TEST_WORKERS ?= 2

bin := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(bin)/python examples/demo.py

test: $(VENV)/.test
	$(bin)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/clang-format --dry-run --Werror csrc/*.cc csrc/*.h

clean:
	rm -rf $(VENV) build *.egg-info tfmeta/_core*.so tfmeta/_tf_ops*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The package is installed in place, so that only a change of the C++ or of the metadata needs
# another install.
sources := pyproject.toml setup.py $(wildcard csrc/*)

$(VENV)/.demo: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e .
	touch $@

$(VENV)/.test: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e '.[dev]'
	touch $@

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --upgrade pip
	touch $@
