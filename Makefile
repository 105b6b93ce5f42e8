# `make help` lists the targets. Each works on a fresh machine: what it needs is set up first.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
MANIFEST ?= examples/01-smollm2.yaml
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc -type f \( -name '*.cpp' -o -name '*.h' \))

.PHONY: help run test check gen check-gen bench fuzz faults sanitize lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP)  ## serve examples/01-smollm2.yaml on this machine (MANIFEST=FILE, ARGS='--port 8080')
	@$(BIN)/servewright run $(MANIFEST) $(ARGS)

test: $(STAMP)  ## run every test that needs no cluster (ARGS='-k name')
	$(BIN)/pytest $(ARGS)

check: $(STAMP)  ## format, lint, types, imports, generated files, the house's own tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/python -m hack.gen --check
	$(BIN)/pytest -q tests/unit/house

gen: $(STAMP)  ## write the generated files anew (schemas, tables)
	$(BIN)/python -m hack.gen

check-gen: $(STAMP)  ## fail if a generated file differs from what would be generated
	$(BIN)/python -m hack.gen --check

bench: $(STAMP)  ## measure this engine beside llama.cpp, one table
	$(BIN)/python bench/run.py $(ARGS)

fuzz: $(STAMP)  ## the property tests for longer, with new random seeds
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest -m fuzz --timeout 3600 $(ARGS)

faults: $(STAMP)  ## kill each process of a run in turn and look what is left
	SERVEWRIGHT_FAULTS=all $(BIN)/pytest -m faults --timeout 600 $(ARGS)

sanitize: $(STAMP)  ## kernel, loader and engine tests on an ASan and UBSan build
	PYTHON=$(BIN)/python hack/sanitize.sh $(ARGS)

lock: $(STAMP)  ## resolve requirements.lock anew
	$(BIN)/python hack/lock.py

# Without build isolation the build uses the locked setuptools and pybind11.
$(STAMP): pyproject.toml setup.py requirements.lock $(SOURCES)
	@PYTHON='$(PYTHON)' hack/preflight.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c requirements.lock pip setuptools wheel pybind11
	$(BIN)/python -m pip install --quiet -c requirements.lock --no-build-isolation -e '.[dev]'
	@touch $@
