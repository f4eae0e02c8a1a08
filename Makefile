# make demo    the main job on the embedded task: search, front, compressed model (installs first)
# make test    ruff, mypy, pytest, notebooks
# make lint    ruff and mypy only
# make test-slow   the tests that need real data (AUTOMC_DATA) or minutes

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet
# torch comes first and alone: pip's settings decide from where, and the CPU build saves gigabytes of CUDA packages.
TORCH = torch==2.13.0

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed
	$(BIN)/automc search digits --budget "macs<=50%" --searcher joint --trials 60 --seed 0 --study demo
	$(BIN)/automc pareto demo --html runs/demo/pareto.html
	$(BIN)/automc apply demo --out runs/demo/model
	@echo
	@echo "The results lie in runs/:"
	@echo "  runs/demo/pareto.html   the front, interactive"
	@echo "  runs/demo/model/        model.safetensors, policy.json, report.json"
	@echo "  runs/demo.journal       every trial; delete it to search anew"

test: lint
	$(BIN)/python -m pytest -n 2 --nbmake tests notebooks

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800 tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "automc needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed
