# Each target makes .venv if it is missing or older than its inputs, then does its one job.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test lint zoo bench notebooks

app: .venv/made
	$(BIN)/workbench app

test: .venv/made
	$(BIN)/python -m pytest --ignore tests/ui -n auto --dist worksteal
	$(BIN)/python -m pytest tests/ui

lint: .venv/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

zoo: .venv/made
	$(BIN)/python -m workbench.zoo.train

bench: .venv/made
	$(BIN)/python benchmarks/circuits.py
	$(BIN)/python benchmarks/sinks.py
	$(BIN)/python benchmarks/attention_view.py
	$(BIN)/python benchmarks/routing.py
	$(BIN)/python benchmarks/token_map.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/tune.py
	$(BIN)/python benchmarks/dashboard.py

notebooks: .venv/made
	$(BIN)/jupytext --sync notebooks/*.py

.venv/made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
