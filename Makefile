# Each target does all its set-up on a fresh machine: a virtual environment in .venv, the tested versions, the package.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The check-out beside which the shared test data lie; tests that need them skip where they are absent.
export FLAGTRL_SHARED ?= ../shared
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/flagtrl demo --output_dir runs/demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch first and by itself: where a CPU build is at hand, pip takes it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
