# make demo | test | lint | bench | docs; each makes .venv first, with the versions of constraints.txt.

# The first Python that Equidyn runs on.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c \
	'import sys; print("$(name)" if (3, 11) <= sys.version_info < (3, 14) else "")' 2>/dev/null)))
# Installed before everything else. Linux without a GPU: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PACKAGE := pyproject.toml constraints.txt
DEMO := runs/demo

.PHONY: help demo test lint bench docs
.DELETE_ON_ERROR:

help:
	@echo "make demo   simulate, train EGNO and EGNN, evaluate, write a report (a few minutes)"
	@echo "make test   all tests"
	@echo "make lint   style, types, direction of imports"
	@echo "make bench  benchmarks, with a table of ratios"
	@echo "make docs   the documentation, into site/"

.venv/made:
	@test -n "$(PYTHON)" || { echo "Equidyn needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/torch: .venv/made constraints.txt
	$(PIP) $(TORCH)
	@touch $@

.venv/package: .venv/torch $(PACKAGE)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

.venv/develop: .venv/package
	$(PIP) --constraint constraints.txt --editable '.[test,lint,docs]'
	@touch $@

.venv/bench: .venv/develop
	$(PIP) --constraint constraints.txt --editable '.[bench]'
	@touch $@

demo: .venv/package
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/equidyn simulate charged $(DEMO)/charged.npz --num 5000
	$(BIN)/equidyn train recipes/nbody/demo_egno.yaml --runs $(DEMO)
	$(BIN)/equidyn train recipes/nbody/demo_egnn.yaml --runs $(DEMO)
	@echo; echo "The test samples:"
	@$(BIN)/equidyn evaluate $(DEMO)/EGNO $(DEMO)/EGNN
	@printf "report: "
	@$(BIN)/equidyn report $(DEMO)/EGNO $(DEMO)/EGNN --out $(DEMO)/report.html

# One thread for each of two processes: on two cores faster than two threads in one.
test: .venv/develop
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/bench
	$(BIN)/python -m benchmarks

docs: .venv/develop
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
