# Clearway: `make help` lists the vocabulary.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
VENV ?= .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Where it is set, nothing that uv installs is ever compiled, and every import costs seconds.
unexport PYTHONDONTWRITEBYTECODE

# A folder with params.yaml and schema.yaml; the flights by default.
PROJECT ?= .
# Moves time: AS_OF=2013-10-01
AS_OF ?=
# A part of the integration tests: SHARD=2/5
SHARD ?= 1/1

.PHONY: help setup setup-serve run stop drill ui repro data-push data-pull test test-lines test-unit test-integration test-shard test-workflows coverage lint format bench docs lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv and install the hash-pinned lock

$(VENV)/.ready: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	@echo "setup: making $(VENV) and installing the lock (about 1.1 GB the first time)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --require-hashes --compile-bytecode -r requirements-dev.txt
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

setup-serve: $(VENV)/.serve ## make .venv with what serves and rolls back, and nothing that trains

$(VENV)/.serve: requirements-serve.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements-serve.txt
	@$(VENV)/bin/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "clearway.pth").write_text("$(abspath src)\n")'
	@touch $@

run: setup ## take the model from raw data to 100% of production traffic (AS_OF=2013-10-01, PROJECT=folder)
	@python scripts/run_line.py --project $(PROJECT) $(if $(AS_OF),--as-of $(AS_OF))

stop: setup ## stop the servers that `make run` left serving
	@python scripts/stop.py --project $(PROJECT)

drill: setup ## deploy ten versions in a row under load, one of them bad, and roll it back
	@python scripts/drill.py

ui: setup ## open MLflow's pages on the runs and models of PROJECT
	@python scripts/ui.py --project $(PROJECT)

repro: setup ## run the DVC stages that changed, up to the bundle
	@dvc repro

data-push: setup ## upload the data that dvc.lock of PROJECT names to its DVC remote
	@python scripts/push_data.py --project $(PROJECT)

data-pull: setup ## download the data that dvc.lock of PROJECT names, and verify it
	@python scripts/pull_data.py --project $(PROJECT)

test: setup ## run every test but whole lines: unit, integration, workflow files
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=12 -m "not lines" tests

test-lines: setup ## run whole lines: real flights, a table of one's own, delivery under a local runner
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=12 -m lines tests/integration

test-unit: setup ## run the fast tests
	@python -m pytest -q tests/unit

test-integration: setup ## run the tests with real processes
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not lines" tests/integration

test-shard: setup ## run a part of all integration tests, whole lines too (SHARD=2/5)
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=12 --shard $(SHARD) tests/integration

coverage: setup ## run the fast tests and show which lines they reach
	@python -m pytest -q -n 2 --cov --cov-report=term:skip-covered tests/unit

test-workflows: setup ## run the workflow files under a local runner
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integration/workflows

lint: setup ## check format, lint and types
	@ruff format --check . && ruff check . && mypy

format: setup ## format and fix what can be fixed
	@ruff format . && ruff check --fix .

bench: setup ## measure every figure the docs quote
	@for script in benchmarks/[!_]*.py; do echo "== $$script" && python $$script || exit 1; done

docs: setup ## write the reference pages that are made from code
	@python scripts/write_reference.py

# One lock for every Python from 3.11 on: what only some of them need has a marker.
LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links
lock: setup ## compile the hash-pinned locks from pyproject.toml
	@$(LOCK) pyproject.toml -o requirements.txt
	@$(LOCK) --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	@$(LOCK) --group serve -c requirements.txt -o requirements-serve.txt

clean: ## remove all that the line made, but not .venv (stop first)
	@rm -rf data build reports var drift_result.txt .dvc/tmp .dvc/cache
