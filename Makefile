# Everything here sets up .venv by itself: Python >= 3.11 with venv, make and PyPI are all it needs. Set-up goes to stderr, so that
# stdout is what the command says. `make demo ARGS="--seconds 20 --json"`: its last line is the document.
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
PARALLEL ?= 2
JOBS ?= 2
STATE ?= .venv/sim-campaign.json
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore
TEST := $(BIN)/python -m pytest
RESOLVE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url
LOCK := $(RESOLVE) --extra demo --extra s3-server --group dev

# The stamps are copies: a changed lock makes the environment anew, a touched one does not.
LOCKED := .venv/.requirements.lock
INSTALLED := .venv/.pyproject.toml
SPARK := .venv/.requirements-spark.lock

.PHONY: help setup demo test test-full lint format docs test-unit test-sim test-crash test-machine test-twins test-spark test-tpch fuzz soak bounds storm sim-campaign bench lock clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(LOCKED): requirements.lock
	@{ cmp -s $< $@ || { \
	  echo "icelake: making .venv (once, and when requirements.lock changes)"; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "icelake needs Python 3.11 or newer; name one: make PYTHON=python3.12")'; \
	  $(PYTHON) -m venv --clear .venv; \
	  $(PIP) --require-hashes --only-binary=:all: -r $<; \
	}; cp $< $@; } >&2

$(INSTALLED): pyproject.toml $(LOCKED)
	@{ cmp -s $< $@ || { \
	  $(PIP) --no-deps --no-build-isolation --editable .; \
	  echo "icelake: compiling the kernels (a demo of one second, once)"; \
	  $(BIN)/icelake demo --seconds 1 --json >/dev/null 2>.venv/warm.log || echo "icelake: that did not work, see .venv/warm.log; going on"; \
	}; cp $< $@; } >&2

$(SPARK): requirements-spark.lock $(INSTALLED)
	@{ cmp -s $< $@ || $(PIP) --require-hashes --use-pep517 -r $<; cp $< $@; } >&2

setup: $(INSTALLED) ## make .venv with everything in it

demo: $(INSTALLED) ## a shop that keeps trading, mirrored, questioned and verified: make demo ARGS="--seconds 20 --json"
	@exec $(BIN)/icelake demo $(ARGS)

# The schedules take every core there is, so nothing runs beside them.
test: lint ## everything but the tests that need Java
	@$(TEST) -n $(PARALLEL) --dist worksteal -q -m "not spark and not sim" --every-error
	@exec $(TEST) -q -m sim tests/sim

test-full: lint ## make test with its short forms at full length (hours)
	@ICELAKE_FULL=1 exec $(MAKE) test

lint: $(INSTALLED) ## ruff, mypy, the rooms' import contracts, dependencies, generated pages
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }
	@$(BIN)/deptry src --no-ansi 2> .venv/deptry.log || { cat .venv/deptry.log; exit 1; }
	@$(BIN)/python docs/errors.py --check
	@$(BIN)/python docs/type_contract.py --check
	@echo "lint: clean" >&2

format: $(INSTALLED) ## let ruff write what it can
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

docs: $(INSTALLED) ## write docs/reference from the code
	@$(BIN)/python docs/errors.py
	@$(BIN)/python docs/type_contract.py

test-unit: $(INSTALLED) ## unit and conformance tests only
	@exec $(TEST) -n $(PARALLEL) --dist worksteal -q -m "not spark and not sim and not crash" tests/unit tests/conformance $(ARGS)

test-sim: $(INSTALLED) ## the simulated schedules
	@exec $(TEST) -q -m sim tests/sim $(ARGS)

sim-campaign: $(INSTALLED) ## half a million schedules, gone on with where they were left: make sim-campaign JOBS=1 STATE=FILE
	@exec $(BIN)/python -m tests.sim --schedules 500000 --jobs $(JOBS) --state $(STATE) $(ARGS)

test-crash: $(INSTALLED) ## kill -9 on the real thing
	@exec $(TEST) -q -m crash $(ARGS)

test-machine: $(INSTALLED) ## the state machine at full length, 400 examples on each version of PostgreSQL: make test-machine ARGS="-k pg14"
	@ICELAKE_FULL=1 exec $(TEST) -q tests/machine $(ARGS)

test-twins: $(INSTALLED) ## every kernel against its twin on 1,000 cases, compiled with numba's own bounds checks too
	@ICELAKE_FULL=1 NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/.venv/bounds exec $(TEST) -n $(PARALLEL) -q --timeout=3600 tests/twins $(ARGS)

test-spark: $(SPARK) ## the same tables read by Spark (Java 17 or 21)
	@exec $(TEST) -q -m spark tests/spark $(ARGS)

test-tpch: $(INSTALLED) ## TPC-H at scale 1 with changes, 22 queries on both sides (an hour and more)
	@ICELAKE_TPCH_SCALE=1 exec $(TEST) -q -s tests/journeys/test_tpch.py $(ARGS)

fuzz: $(INSTALLED) ## bytes that somebody else may have written: make fuzz ARGS="--target pgoutput --runs 10000000"
	@exec $(BIN)/python -m tests.fuzz $(ARGS)

storm: $(INSTALLED) ## disasters under load, 200 kills among them (hours): make storm ARGS="--rounds 310 --seed 7 --json"
	@exec $(BIN)/python -m tests.crash.storm $(ARGS)

soak: $(INSTALLED) ## an hour at one commit a second
	@exec $(BIN)/icelake bench soak --json $(ARGS)

bounds: $(INSTALLED) ## what bounds memory and open files at full length: a transaction of five million rows, many tables, a slow storage
	@ICELAKE_FULL=1 exec $(TEST) -q -s tests/journeys/test_bounds.py $(ARGS)

bench: $(INSTALLED) ## figures as JSON: make bench ARGS="apply.mixed"
	@exec $(BIN)/icelake bench $(ARGS) --json

lock: ## resolve the dependencies anew (needs uv in .venv)
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) pyproject.toml -o requirements.lock
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --group spark pyproject.toml -o requirements-spark.lock
	@cd src/icelake/bench/peer_scripts && for peer in *.in; do \
	  UV_CUSTOM_COMPILE_COMMAND="make lock" $(CURDIR)/$(RESOLVE) $$peer -o $${peer%.in}.lock; \
	done

clean: ## remove .venv and what tools left
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz build dist
