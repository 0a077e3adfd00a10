# make demo   see it work, from nothing
# make test   run the tests, from nothing
# make docs   build the documentation site in site/, from nothing
PYTHON ?= python3
VENV ?= .venv
# Each has a TensorFlow of its own, which takes some gigabytes.
TEST_WORKERS ?= 2
KERNEL_TESTS := tests/data/test_core.py tests/data/test_memmap.py tests/data/test_augmentation.py \
	tests/test_kernels.py tests/test_ops.py tests/test_fuzz.py

bin := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test docs notebook lint clean sanitize sanitize-address sanitize-thread

demo: $(VENV)/.demo
	$(bin)/python examples/demo.py

test: $(VENV)/.test
	$(bin)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Warnings are errors (`strict` in mkdocs.yml), and so are figures that were not measured.
docs: $(VENV)/.docs
	$(bin)/python benchmarks/figures.py --check
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build

# Runs the quickstart and writes what it prints into it.
notebook: $(VENV)/.docs
	$(bin)/python docs/theme/notebook.py --write

lint: $(VENV)/.dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/clang-format --dry-run --Werror csrc/*.cc csrc/*.h

# The kernels' tests under the compiler's sanitizers (GCC, Linux): of addresses and of undefined
# behaviour together, and of threads. The build is apart from the one that `make test` uses.
sanitize: sanitize-address sanitize-thread

sanitize-address: watched := address,undefined
sanitize-address: runtime := asan
sanitize-thread: watched := thread
sanitize-thread: runtime := tsan
sanitize-address sanitize-thread: $(VENV)/.test
	rm -rf build
	TFMETA_SANITIZE=$(watched) $(bin)/python -m pip install -q --no-deps --upgrade \
		--target $(VENV)/$(runtime) .
	rm -rf build
	# Not the checkout's own build: the working directory comes last. And pytest does not capture
	# what a sanitizer prints before it ends the process.
	LD_PRELOAD="$$($(CC) -print-file-name=lib$(runtime).so) $$($(CC) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	TSAN_OPTIONS=ignore_noninstrumented_modules=1:allocator_may_return_null=1 \
	PYTHONSAFEPATH=1 PYTHONPATH=$(VENV)/$(runtime):$(CURDIR) TFMETA_SANITIZED=$(runtime) \
	$(bin)/pytest -n $(TEST_WORKERS) -p no:cacheprovider --capture=sys \
		--import-mode=append -k "not 50_gb" $(KERNEL_TESTS)

clean:
	rm -rf $(VENV) build site .cache *.egg-info tfmeta/_core*.so tfmeta/_tf_ops*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The package is installed in place, so that only a change of the C++ or of the metadata needs
# another install.
sources := pyproject.toml setup.py $(wildcard csrc/*)

$(VENV)/.demo: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e .
	touch $@

$(VENV)/.test: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e '.[test]'
	touch $@

$(VENV)/.docs: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e '.[docs]'
	touch $@

# With all that the tests need.
$(VENV)/.dev: $(VENV)/.pip $(sources)
	$(bin)/python -m pip install -e '.[dev]'
	touch $(VENV)/.test $@

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --upgrade pip
	touch $@
