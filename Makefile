# Everything a fresh Linux machine needs is set up by the target that needs it. `make help` lists the targets.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,15))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
# Where tools/system unpacks what it may not install; nginx is not on everybody's PATH.
export PATH := $(PATH):/usr/sbin:$(CURDIR)/.tools/usr/bin:$(CURDIR)/.tools/usr/sbin
BIN := $(VENV)/bin

.PHONY: help setup setup-test demo test check fuzz faults mutate bench bench-gateway bench-decision bench-footprint bench-sandbox lock clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(VENV)/demo.done: requirements/demo.txt pyproject.toml
	@tools/setup "$(PYTHON)" $(VENV) requirements/demo.txt
	@touch $@

$(VENV)/dev.done: requirements/dev.txt pyproject.toml
	@tools/setup "$(PYTHON)" $(VENV) requirements/dev.txt
	@touch $@ $(VENV)/demo.done

setup: $(VENV)/demo.done
	@tools/system bubblewrap

setup-test: $(VENV)/dev.done
	@tools/system bubblewrap curl git nginx node java

demo: setup  ## the whole story on the embedded default: no key, no network, no daemon
	@$(BIN)/bailiwick demo

test: setup-test  ## every test of the product
	@$(BIN)/pytest -q

check: setup-test  ## style, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fuzz: setup-test  ## the fuzz targets for FUZZ_MINUTES (default 60) in all
	@$(BIN)/python -m tests.fuzz --minutes $${FUZZ_MINUTES:-60}

faults: setup-test  ## kill -9 of every process at FAULT_ROUNDS (default 50) random moments under load
	@$(BIN)/python -m tests.e2e.kills --rounds $${FAULT_ROUNDS:-50}

mutate: setup-test  ## each protection removed in a copy of the tree, and its tests seen red
	@tools/mutate $(BIN)/python

bench: bench-decision bench-gateway bench-sandbox bench-footprint  ## every benchmark

bench-gateway bench-decision bench-footprint bench-sandbox: setup-test
	@$(BIN)/python -m bench.$(@:bench-%=%)

lock:  ## requirements/*.txt from pyproject.toml
	@tools/lock

clean:
	@rm -rf $(VENV) .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
