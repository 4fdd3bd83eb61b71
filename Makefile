# make setup | demo | test | test-slow | check | bench | docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= full
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-slow check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@echo "installing into $(VENV): a minute or three, quiet unless something fails"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/drrl demo $(if $(filter quick,$(DEMO)),--quick)

test: $(STAMP) check
	$(BIN)/pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/drrl bench update
	$(BIN)/drrl bench env
	$(BIN)/drrl bench policy

clean:
	rm -rf $(VENV) build dist

# What the README says was measured: runs the benchmarks here and rewrites its tables (about 40 minutes).
.PHONY: measure
measure: $(STAMP)
	rm -rf build/measure && mkdir -p build
	$(BIN)/drrl bench update --json > benchmarks/update.json
	$(BIN)/drrl bench env --json > benchmarks/env.json
	$(BIN)/drrl bench policy --json > benchmarks/policy.json
	$(BIN)/drrl demo --logdir build/measure
	cp build/measure/DRRL-Attention-v0/compare-test/comparison.csv benchmarks/
	cp build/measure/DRRL-Attention-v0/compare-test/comparison.png docs/
	$(BIN)/drrl bench guard --json > build/guard.json && mv build/guard.json benchmarks/guard.json
	$(BIN)/python benchmarks/guard_page.py
	$(BIN)/drrl bench tasks --json > build/tasks.json && mv build/tasks.json benchmarks/tasks.json
	$(BIN)/python -m drrl_env.envs.describe --write
	$(BIN)/python benchmarks/readme.py

# The pages in docs/, from docstrings, tables and benchmarks/tasks.json; a test fails when one is stale.
.PHONY: docs
docs: $(STAMP)
	$(BIN)/python -m drrl_env.envs.describe --write
