# Two commands on a fresh machine: `make run` and `make test`. Everything else is for those who change the code.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CYCLES ?= 200

.PHONY: help run test lint format torture bench lock clean

help:
	@echo "make run      install into .venv and run the demo (real webhook deliveries, a worker killed midway)"
	@echo "make test     install what the tests need and run them (starts a real Valkey on a free port)"
	@echo "make lint     ruff, mypy --strict, import rules"
	@echo "make torture  the crash suite at length (CYCLES=$(CYCLES) kills a store)"
	@echo "make bench    measure beside the peers; writes docs/results/bench.json"

$(BIN)/.run: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/.bench: $(BIN)/.run constraints-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints-bench.txt
	@touch $@

run: $(BIN)/.run
	$(BIN)/ag06 demo

test: $(BIN)/.run
	$(BIN)/python -m pytest

lint: $(BIN)/.run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports --no-cache

format: $(BIN)/.run
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

torture: $(BIN)/.run
	AG06_CRASH_CYCLES=$(CYCLES) $(BIN)/python -m pytest tests/crash -v --timeout=7200

bench: $(BIN)/.bench
	$(BIN)/python -m benchmarks --output docs/results

# Universal: one file holds the pins and hashes for every Python and platform the project runs on.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links --extra redis --extra dev

lock:
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --output-file constraints.txt pyproject.toml
	$(COMPILE) --extra bench --constraint constraints.txt --output-file constraints-bench.txt pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
