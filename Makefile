# make demo      captions and a question on a real video: demo.captions.srt, demo.png
# make ui        a page in the browser, on the same video: watch, ask, find
# make demo-live a camera made of the demo's clips, watched for 90 s: captions, an alert, counters
# make test      the tests, in minutes        make test-all  with the heavy ones
# make test-cases   the inputs that showed faults, where STREAMMEM_DATA holds them
# make setup     what both need: .venv, the packages, the models' weights
# make lint      ruff and mypy                make wheel     dist/*.whl           make clean
#
# Needs Python >= 3.11 and, the first time, PyPI. Another Python: make PYTHON=python3.12 demo

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Two busy OpenMP threads on two busy cores are many times slower than one.
export OMP_NUM_THREADS ?= 1
# Three processes run the tests, a file by one of them, since a third of the time one waits for
# others. In one process: make test WORKERS=
# One that dies is not started again: its test is named, and the other goes on. Files come in their
# own order: by number of tests, as is usual, the slowest, which hold few, would come last.
WORKERS ?= -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo demo-live ui test test-all test-cases setup lint wheel clean

# Weights that are here are left alone.
define pull_models
@$(BIN)/streammem models pull >/dev/null
endef

demo: $(VENV)/demo.stamp
	$(pull_models)
	@$(BIN)/python -m benchmarks demo

demo-live: $(VENV)/demo.stamp
	$(pull_models)
	@$(BIN)/python -m benchmarks camera

ui: $(VENV)/ui.stamp
	$(pull_models)
	@$(BIN)/streammem ui --open "$$($(BIN)/python -m benchmarks demo --video)"

test: setup
	@$(BIN)/python -m pytest $(WORKERS) -m "not heavy"

test-all: setup
	@$(BIN)/python -m pytest $(WORKERS)

test-cases: setup
	@$(BIN)/python -m pytest tests/test_cases.py -rs

setup: $(VENV)/dev.stamp
	$(pull_models)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

wheel: $(VENV)/dev.stamp
	$(BIN)/python -m hatchling build -t wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.captions.srt demo.png

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streammem needs Python >= 3.11: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing streammem into $(VENV), once ..."
	@$(PIP) -e '.[train]'
	@touch $@

$(VENV)/ui.stamp: pyproject.toml $(VENV)/demo.stamp | $(BIN)/python
	@echo "Installing what the page needs into $(VENV), once ..."
	@$(PIP) -e '.[ui]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing streammem and what its tests need into $(VENV), once ..."
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/demo.stamp $(VENV)/ui.stamp $@
