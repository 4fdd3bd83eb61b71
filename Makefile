# make setup | demo | test | test-slow | notebooks | check | bench | measure | policies | docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= full
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-slow notebooks check bench clean

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
	$(MAKE) notebooks

# Executes the notebooks from top to bottom on their small settings, a minute or so each; nothing is written into them.
notebooks: $(STAMP)
	$(BIN)/pytest --nbmake --nbmake-timeout=900 notebooks

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/drrl bench update
	$(BIN)/drrl bench env
	$(BIN)/drrl bench decide
	$(BIN)/drrl bench policy

clean:
	rm -rf $(VENV) build dist

# What the README says was measured: runs the benchmarks here and rewrites its tables (about 40 minutes).
.PHONY: measure
measure: $(STAMP)
	rm -rf build/measure && mkdir -p build
	$(BIN)/drrl bench update --json > benchmarks/update.json
	$(BIN)/drrl bench env --json > benchmarks/env.json
	$(BIN)/drrl bench decide --json > build/decide.json && mv build/decide.json benchmarks/decide.json
	$(BIN)/drrl bench policy --json > benchmarks/policy.json
	$(BIN)/drrl demo --logdir build/measure
	cp build/measure/DRRL-Attention-v0/compare-test/comparison.csv benchmarks/
	cp build/measure/DRRL-Attention-v0/compare-test/comparison.png docs/
	$(BIN)/drrl bench guard --json > build/guard.json && mv build/guard.json benchmarks/guard.json
	$(BIN)/python benchmarks/guard_page.py
	$(BIN)/drrl bench tasks --json > build/tasks.json && mv build/tasks.json benchmarks/tasks.json
	$(BIN)/python -m drrl_env.envs.describe --write
	$(BIN)/python benchmarks/readme.py

# Trains, compares and exports the policies that ship; takes long, and goes on where it was stopped.
.PHONY: policies
policies: $(STAMP)
	$(BIN)/python benchmarks/policies.py train
	$(BIN)/python benchmarks/policies.py compare
	$(BIN)/python benchmarks/policies.py ship
	$(BIN)/python benchmarks/curves.py runs/DRRL-Tolerance-v0
	$(BIN)/python benchmarks/tolerance.py
	$(BIN)/python benchmarks/readme.py
	$(MAKE) pictures

# The README's pictures of TensorBoard, from the runs that `make policies` trained and compared; needs Chromium.
.PHONY: pictures
pictures: $(STAMP)
	DRRL_RUNS=runs/DRRL-Tolerance-v0 DRRL_SCREENSHOTS=docs $(BIN)/pytest -m slow tests/drrl_agents/test_board.py -k readme

# The generated pages in docs/, from docstrings, tables and benchmarks/*.json; a test fails when one is stale.
.PHONY: docs
docs: $(STAMP)
	$(BIN)/python -m drrl_agents.algorithm_page --write
	$(BIN)/python benchmarks/guard_page.py
	$(BIN)/python benchmarks/curves.py
	$(BIN)/python benchmarks/tolerance.py --page
	$(BIN)/python -m drrl_env.envs.describe --write
	$(BIN)/python benchmarks/readme.py
