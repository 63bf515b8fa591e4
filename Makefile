# Every target works on a fresh machine with Python 3.11 or newer and git: the virtual environment is made when missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench soak fuzz constraints clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY)  ## Make the virtual environment

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## Caption drawn pictures end to end with the tiny model that ships with the project
	$(BIN)/etl demo

test: $(READY) lint  ## Lint, check types and layers, run the tests
	$(BIN)/python -m pytest -m 'not soak' --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Run the benchmarks that need no GPU (benchmarks/README.md)
	$(BIN)/python -m benchmarks.ingest

soak: $(READY)  ## Kill, cut and garble for minutes, one test after the other; ends with a table of all faults
	$(BIN)/python -m pytest -m soak --ignore tests/fuzz

fuzz: $(READY)  ## Feed bad input to everything that reads a stranger's bytes, for minutes; ends with a table
	$(BIN)/python -m pytest -m soak tests/fuzz

constraints:  ## Write the exact versions of this environment into constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | grep -vE '^(pip|triton)==' > constraints.txt

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: rehearsal
rehearsal: $(READY)  ## Run the archive's manifest against stand-ins for its hosts: make rehearsal MANIFEST=file
	@test -n "$(MANIFEST)" || { echo "usage: make rehearsal MANIFEST=manifest.jsonl.gz"; exit 2; }
	$(BIN)/python -m benchmarks.run.archive_rehearsal $(MANIFEST)

.PHONY: rehearsal-small
rehearsal-small: $(READY)  ## Fetch all of the archive's manifest as small pictures, a tenth of them faulty: MANIFEST=file
	@test -n "$(MANIFEST)" || { echo "usage: make rehearsal-small MANIFEST=manifest.jsonl.gz"; exit 2; }
	$(BIN)/python -m benchmarks.run.archive_rehearsal $(MANIFEST) --small

.PHONY: screenshots
screenshots: $(READY)  ## Make the pictures of docs/dashboard.md (needs rsvg-convert)
	$(BIN)/python -m benchmarks.tui.screenshots

.PHONY: long-run
long-run: $(READY)  ## Fetch and caption 100,000 small pictures: does anything grow or become slower?
	$(BIN)/python -m benchmarks.run.long_run
