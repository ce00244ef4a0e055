# Everything is set up inside the checkout: .venv (from the hash-locked requirement files) and .sandhold (data).
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter on the PATH that is new enough; `make PYTHON=...` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
export UV_NO_CONFIG := 1
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test check format lock histories output-memory bench workspace-bench clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.complete ## Make .venv with every pinned dependency (the other targets do this themselves)

$(VENV)/.complete: bootstrap.lock requirements-dev.lock requirements-s3-server.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Sandhold needs Python 3.11 or later; none was found. Set PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module does not work here; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r bootstrap.lock
	@$(BIN)/uv pip sync --quiet --require-hashes requirements-dev.lock
	@test -x $(VENV)/s3-server/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(VENV)/s3-server
	@$(BIN)/uv pip sync --quiet --python $(VENV)/s3-server/bin/python --require-hashes requirements-s3-server.lock
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Run the main job: a scripted agent works in a durable session
	@exec $(BIN)/sandhold demo

dev: setup ## Keep Temporal, the local Daytona and a worker up until Ctrl-C
	@exec $(BIN)/sandhold dev

# Most tests wait for timers and servers more than they compute; those of one file share what they set up.
TEST_JOBS ?= 3
test: setup ## Pass all tests, or some: make test TESTS=tests/storage
	$(BIN)/python -m pytest $(or $(TESTS),-n $(TEST_JOBS) --dist worksteal)

output-memory: setup ## Pass 1 GiB of output through a worker; its memory must grow by less than 64 MiB
	SANDHOLD_TEST_OUTPUT_BYTES=1073741824 $(BIN)/python -m pytest -s -k in_little_memory \
		tests/activities/test_following.py tests/supervision/test_worker_memory.py

histories: setup ## Record the main scenarios for the replay tests, once per release: make histories NAME=v2
	$(BIN)/python -m tests.replay.record $(NAME)

bench: setup ## Measure what a call costs here: make bench BENCH="--long --json FILE"
	@exec $(BIN)/python -m bench $(BENCH)

workspace-bench: setup ## Measure downloads of 2 GiB, 100,000 small files and 5 GiB beside the provider's client
	@exec $(BIN)/python -m bench.workspaces $(BENCH)

# CHAOS takes further options: make chaos CHAOS="--kind worker --no-fifty"
chaos: setup ## Break everything under running commands: make chaos ROUNDS=20 SEED=1a2b
	@exec $(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),100) $(if $(SEED),--seed $(SEED)) $(CHAOS)

check: setup ## Lint, type-check strictly, check import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup ## Compile the lock files again from pyproject.toml (hashes, no addresses)
	@for target in "requirements.lock --extra server --extra local" \
			"requirements-server.lock --extra server -c requirements.lock" \
			"requirements-dev.lock --extra server --extra local --group dev -c requirements.lock" \
			"requirements-s3-server.lock --group pyproject.toml:s3-server"; do \
		set -- $$target; out=$$1; shift; test $$out = requirements-s3-server.lock || set -- pyproject.toml "$$@"; \
		$(BIN)/uv pip compile --quiet "$$@" --generate-hashes \
			--no-emit-index-url --no-header --universal --python-version 3.11 -o "$$out" || exit 1; \
	done

clean: ## Remove what the targets made
	rm -rf $(VENV) .sandhold .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
