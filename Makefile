# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv, then the work.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint messages bench bench-gpu clean

demo: .venv/installed
	$(BIN)/ubend demo --out ubend-demo

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

messages: .venv/installed-dev
	$(BIN)/python tools/messages.py

bench: .venv/installed-dev
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/startup.py

bench-gpu: .venv/installed-dev
	$(BIN)/python benchmarks/training_speed.py --width 64 --batch 64 --compile

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
