# `make run` serves the built-in model; `make test` sets up and runs every check. Both need Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Threads of one operation. More than one OpenMP thread on shared cores was measured nine times slower.
export OMP_NUM_THREADS ?= 1
# Modules are compiled once, not by every process that is started.
unexport PYTHONDONTWRITEBYTECODE

# The pip that comes with Python 3.11 takes four times as long to choose versions. Of the 28,000 modules most are never
# imported, so each is compiled when it first is.
pip_upgrade := python -m pip install --quiet --constraint constraints.txt --upgrade pip
pip_install := python -m pip install --quiet --no-compile

.PHONY: help install run run-text test lint types unit quick format

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

install: $(VENV)/installed ## virtual environment with the pinned versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(pip_upgrade)
	$(BIN)/$(pip_install) --constraint constraints.txt --editable '.[dev]'
	touch $@

# What serving needs, for a first picture sooner; `install` adds the rest.
$(VENV)/serving: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(pip_upgrade)
	$(BIN)/$(pip_install) --constraint constraints.txt --editable '.[serve,studio]'
	touch $@

ready := $(if $(wildcard $(VENV)/installed),install,$(VENV)/serving)

run: $(ready) ## serve the built-in picture model on port 8080, with the studio
	UPSCALERS=$${UPSCALERS-$(if $(MODEL_ID),,builtin/shapes/x2)} STUDIO=true $(BIN)/atelier serve

run-text: $(ready) ## serve the built-in language model on port 8080
	STUDIO=true MODEL_ID=builtin/scenes $(BIN)/atelier serve

test: lint types unit ## everything CI checks

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Three processes on two cores, each with files of its own: tests that start servers mostly wait.
unit: install
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# What starts no server: settings, structure, memory plans, manifests, command lines, parsers.
QUICK := tests/test_settings.py tests/test_structure.py tests/hardware tests/manifests tests/deploy \
  tests/text/test_specs.py tests/text/test_parsing.py

quick: install ## a thousand tests that start no server, in two minutes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(QUICK)

format: install ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

-include make/*.mk
