# demo, test, lint, bench, coverage, clean. Each target sets up its own virtual environment when it is missing or older than
# pyproject.toml or the constraints.
#   make demo PYTHON=python3.12     another interpreter, 3.11 or newer
#   make test GPU=1                 the CUDA stack, in .venv-gpu, without the constraints that keep a CPU install small

VENV := .venv$(if $(filter-out 0,$(GPU)),-gpu)
BIN := $(VENV)/bin
CONSTRAINTS := $(if $(filter-out 0,$(GPU)),,-c constraints-cpu.txt)
PIP = -m pip --disable-pip-version-check install --quiet

# The first that runs, is recent enough and can make a virtual environment: a pyenv shim may exist and still fail.
comma := ,
first = $(firstword $(foreach p,$(1),$(shell \
    $(p) -c 'import sys, venv, ensurepip; assert sys.version_info >= $(2)' >/dev/null 2>&1 && echo $(p))))
PYTHON ?= $(call first,python3.11 python3 python3.12 python3.13 python3.14,(3$(comma)11))
PYENV := $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python)
NEWER := $(call first,python3.14 python3.13 python3.12 $(PYENV),(3$(comma)12))

# The tests that must hold without torch, with the newest zarr (3.2 and later need Python 3.12).
NO_TORCH := .venv-notorch
NO_TORCH_NEEDS := "zarr>=3.4,<4" numpy "polars<3" "fsspec[http]" google-crc32c safetensors platformdirs \
    pytest hypothesis pytest-timeout pytest-xdist
# Not those of servers, transfers and importers, which do not depend on what differs here.
NO_TORCH_TESTS := tests/test_layout.py $(filter-out %_cache.py %_web.py %_importers.py %_importers_hostile.py \
    %_hostile_corpus.py %_registry.py %_datacard.py %_verify.py %_pull.py %_iterate.py, $(wildcard tests/test_catalog*.py))

.PHONY: demo test lint bench coverage clean test-no-torch core dev
.NOTPARALLEL:
.DEFAULT_GOAL := test

demo: core
	$(BIN)/weightscape build demo demo.zoo
	$(BIN)/weightscape info demo.zoo
	$(BIN)/weightscape query demo.zoo "test_accuracy > 0.9 and progress = 1.0" \
	    --columns run,width,batch_size,seed,test_accuracy --sort test_accuracy --descending --limit 10
	$(BIN)/weightscape measure demo.zoo
	$(BIN)/weightscape phases demo.zoo --rule median
	$(BIN)/weightscape align demo.zoo
	$(BIN)/weightscape split demo.zoo
	$(BIN)/weightscape publish demo.zoo demo.published --licence CC0-1.0
	$(BIN)/weightscape verify demo.published
	$(BIN)/weightscape pull demo.published wide.zoo --where "width = 64 and progress = 1.0"
	$(BIN)/weightscape explore demo.zoo demo.html --verify
	$(BIN)/weightscape build lineages lineages.zoo
	$(BIN)/weightscape align lineages.zoo --balance
	$(BIN)/weightscape train flow lineages.zoo flow.generator --frame universe --set iterations=1200
	$(BIN)/weightscape sample flow.generator samples.zoo -n 1000
	$(BIN)/weightscape card flow.generator
	@echo "demo.html shows the zoo in a browser, flow.generator/card.png the generator"

# The run without torch comes first, so that the last line is the closing line of the whole suite. `tests.warm` compiles
# what is not in numba's cache, once, where each process of pytest would do it for itself. Three of them, since some
# tests wait: for servers, browsers and processes that are killed.
test: lint test-no-torch
	$(BIN)/python -m tests.warm
	$(BIN)/python -m pytest -n 3

# The suite once more, slower, with the lines and branches that it reaches, worker processes too.
coverage: dev
	$(BIN)/python -m tests.warm
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

lint: dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-gpu $(NO_TORCH) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* build dist

core: $(VENV)/.stamp-core
dev: $(VENV)/.stamp-dev

# `demo` needs only the first of these. An environment whose interpreter has gone is made anew.
$(VENV)/.stamp-core: pyproject.toml constraints-cpu.txt
	$(if $(PYTHON),,$(error no Python 3.11 or newer with venv was found; install one or name it: make PYTHON=/path/to/python3))
	$(BIN)/python -c "import pip" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP) $(CONSTRAINTS) -e ".[plot,explore,generators]"
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-core
	$(BIN)/python $(PIP) $(CONSTRAINTS) -e ".[dev]"
	touch $@

ifeq ($(NEWER),)
test-no-torch:
	@echo "skipped: the tests without torch need Python 3.12 or newer with venv, and none was found"
else
test-no-torch: $(NO_TORCH)/.stamp
	PYTHONPATH=. $(NO_TORCH)/bin/python -m pytest -n 2 $(NO_TORCH_TESTS)

$(NO_TORCH)/.stamp: Makefile
	$(NO_TORCH)/bin/python -c "import pip" 2>/dev/null || $(NEWER) -m venv --clear $(NO_TORCH)
	$(NO_TORCH)/bin/python $(PIP) $(NO_TORCH_NEEDS)
	touch $@
endif
