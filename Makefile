# Two commands on a fresh machine: `make run` and `make test`. Everything else is for those who change the code.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CYCLES ?= 100%
FOR ?= 600
FAULT ?=

.PHONY: help run test lint format torture simulate bench mixer lock clean

help:
	@echo "make run      install into .venv and run the demo (real webhook deliveries, a worker killed midway)"
	@echo "make test     install what the tests need and run them (starts a real Valkey on a free port)"
	@echo "make lint     ruff, mypy --strict, import rules"
	@echo "make torture  the crash suite at length, a few hours (CYCLES=10%: a tenth; FAULT=power: one fault)"
	@echo "make simulate the runtime, the journal and a log under seeded faults in virtual time (FOR=600 seconds)"
	@echo "make mixer    real audio through a channel strip: the example in examples/mixer"
	@echo "make bench    measure beside the peers; writes docs/results/bench.json"

$(BIN)/.run: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/.bench: $(BIN)/.run constraints-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints-bench.txt
	@touch $@

# Some tests preload a library in C. Where there is no compiler, one that comes as a Python package does.
COMPILER := $(if $(shell command -v cc),,$(BIN)/.compiler)

$(BIN)/.compiler: $(BIN)/.run constraints-compiler.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints-compiler.txt
	@touch $@

run: $(BIN)/.run
	$(BIN)/ag06 demo

test: $(BIN)/.run $(COMPILER)
	$(BIN)/python -m pytest

lint: $(BIN)/.run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports --no-cache

format: $(BIN)/.run
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

torture: $(BIN)/.bench $(COMPILER)
	AG06_TORTURE=$(CYCLES) AG06_TORTURE_RESULTS=docs/results/torture.json $(BIN)/python -m pytest tests/crash -v -k "$(FAULT)"
	AG06_TORTURE=$(CYCLES) AG06_TORTURE_RESULTS=docs/results/torture.json $(BIN)/python -m tests.crash.peers $(FAULT)
	$(BIN)/python -m tests.crash.report docs/results/torture.json
	$(BIN)/python -m tests.simulation --seconds $(FOR)

simulate: $(BIN)/.run
	$(BIN)/python -m tests.simulation --seconds $(FOR)

bench: $(BIN)/.bench
	$(BIN)/python -m benchmarks --output docs/results

mixer: $(BIN)/.run
	$(BIN)/python -m examples.mixer --seconds 20

# Universal: one file holds the pins and hashes for every Python and platform the project runs on.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links

lock:
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra redis --extra dev --output-file constraints.txt pyproject.toml
	$(COMPILE) --extra redis --extra dev --extra bench --constraint constraints.txt \
	  --output-file constraints-bench.txt pyproject.toml
	echo "ziglang>=0.13" | $(COMPILE) --output-file constraints-compiler.txt -

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
