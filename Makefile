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
KERNELS := $(shell find csrc tests -type f \( -name '*.cu' -o -name '*.cuh' -o -name 'emulator_*.cpp' -o -name 'emulator_*.h' \))

.PHONY: help run test check gen check-gen e2e images scale bench fuzz faults sanitize lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP)  ## serve examples/01-smollm2.yaml on this machine (MANIFEST=FILE, ARGS='--port 8080')
	@$(BIN)/servewright run $(MANIFEST) $(ARGS)

test: $(STAMP)  ## run every test that needs no cluster (ARGS='-k name')
	hack/test.sh $(ARGS)

check: $(STAMP)  ## format, lint, types, imports, generated files, the house's own tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(KERNELS)
	$(BIN)/python -m hack.gen --check
	$(BIN)/pytest -q tests/unit/house

gen: $(STAMP)  ## write the generated files anew (schemas, tables)
	$(BIN)/python -m hack.gen

check-gen: $(STAMP)  ## fail if a generated file differs from what would be generated
	$(BIN)/python -m hack.gen --check

e2e: $(STAMP)  ## the tests on Kubernetes: its API server, then a whole cluster (docs/testing.md)
	hack/e2e.sh $(ARGS)

images: $(STAMP)  ## build the images of operator and runtime (docs/images.md)
	hack/images.sh $(ARGS)

scale: $(STAMP)  ## 1,000 ModelServices on pretended nodes, one table
	hack/cluster.sh --inside --nodes 0 --fake 20 -- $(BIN)/python bench/scale.py $(ARGS)

bench: $(STAMP)  ## measure this engine beside llama.cpp, one table
	$(BIN)/python bench/run.py $(ARGS)

fuzz: $(STAMP)  ## the property tests for longer, with new random seeds
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest -m fuzz --timeout 3600 $(ARGS)

faults: $(STAMP)  ## the long matrix of faults: each process of a run, then a cluster (docs/testing.md)
	SERVEWRIGHT_FAULTS=all $(BIN)/pytest -m 'faults and not node' --timeout 600 $(ARGS)
	SERVEWRIGHT_FAULTS=all hack/e2e.sh node -m faults --timeout 1200 $(ARGS)

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
