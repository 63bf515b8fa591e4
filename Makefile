# Every target works on a fresh machine with Python 3.11 or newer and git: the virtual environment is made when missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup dev light demo test test-torchvision test-transformers lint format bench soak fuzz constraints clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY)  ## Make the virtual environment, with what captioning needs

dev: $(DEV)  ## The same with the developers' tools, which tests and lint want

light: $(BIN)/python  ## The same for machines that only ingest, fetch, watch and export: 110 MB, no torch
	$(PIP) --requirement requirements/light.txt
	$(PIP) --no-deps --editable .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $(READY)

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $(DEV) $(READY)

demo: $(READY)  ## Caption drawn pictures end to end with the tiny model that ships with the project
	$(BIN)/etl demo

test: $(DEV) lint  ## Lint, check types and layers, run the tests
	$(BIN)/python -m pytest -m 'not soak' --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## Run the benchmarks that need no GPU (benchmarks/README.md)
	$(BIN)/python -m benchmarks.ingest

TV := .venv-torchvision

$(TV)/.ready: pyproject.toml
	test -x $(TV)/bin/python || $(PYTHON) -m venv $(TV)
	$(TV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,vision]'
	touch $@

test-torchvision: $(TV)/.ready  ## Compare with processors that need torchvision, in an environment of their own
	$(TV)/bin/python -m pytest -m torchvision tests/caption

TRANSFORMERS := 5.21.0 5.24.0

test-transformers: $(DEV)  ## Test captioning with the oldest and the newest transformers that are served
	set -e; for version in $(TRANSFORMERS); do \
	  place=$(CURDIR)/$(VENV)/transformers-$$version; \
	  test -d $$place || $(BIN)/python -m pip install --quiet --no-deps --target $$place transformers==$$version; \
	  PYTHONPATH=$$place $(BIN)/python -m pytest -m 'not soak' --numprocesses auto --maxprocesses 4 tests/caption; \
	done

soak: $(DEV)  ## Kill, cut and garble for minutes, one test after the other; ends with a table of all faults
	$(BIN)/python -m pytest -m soak --ignore tests/fuzz

fuzz: $(DEV)  ## Feed bad input to everything that reads a stranger's bytes, for minutes; ends with a table
	$(BIN)/python -m pytest -m soak tests/fuzz

constraints:  ## Write the exact versions of this environment into constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | grep -vE '^(pip|triton)==' > constraints.txt

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) $(TV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: man
man: $(READY)  ## Write the manual page, man/etl.1, from what the commands say of themselves
	mkdir -p man
	$(BIN)/python -m etl.cli.man > man/etl.1

.PHONY: rehearsal
rehearsal: $(DEV)  ## Run the archive's manifest against stand-ins for its hosts: make rehearsal MANIFEST=file
	@test -n "$(MANIFEST)" || { echo "usage: make rehearsal MANIFEST=manifest.jsonl.gz"; exit 2; }
	$(BIN)/python -m benchmarks.run.archive_rehearsal $(MANIFEST)

.PHONY: rehearsal-small
rehearsal-small: $(DEV)  ## Fetch all of the archive's manifest as small pictures, a tenth of them faulty: MANIFEST=file
	@test -n "$(MANIFEST)" || { echo "usage: make rehearsal-small MANIFEST=manifest.jsonl.gz"; exit 2; }
	$(BIN)/python -m benchmarks.run.archive_rehearsal $(MANIFEST) --small

.PHONY: screenshots
screenshots: $(DEV)  ## Make the pictures of docs/dashboard.md (needs rsvg-convert)
	$(BIN)/python -m benchmarks.tui.screenshots

.PHONY: long-run
long-run: $(DEV)  ## Fetch and caption 100,000 small pictures: does anything grow or become slower?
	$(BIN)/python -m benchmarks.run.long_run
