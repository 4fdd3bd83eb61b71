# make setup | demo | test | test-slow | check | bench
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= full
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-slow check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
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
