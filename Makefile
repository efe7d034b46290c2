# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv, then the work.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast lint messages api settings-page bench bench-gpu clean

demo: .venv/installed
	$(BIN)/ubend demo

# Two processes with one thread each: two cores are busy, and small networks gain nothing from a second thread.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: .venv/installed-dev lint
	$(PYTEST)

test-fast: .venv/installed-dev
	$(PYTEST) -m "not slow"

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

messages: .venv/installed-dev
	$(BIN)/python tools/messages.py

api: .venv/installed-dev
	$(BIN)/python tools/api_page.py

settings-page: .venv/installed-dev
	$(BIN)/python tools/settings_page.py

# Figures go to build/benchmarks. Peers that are not installed are left out; the scripts say how to get them.
# MILESIAL=FOLDER: a checkout of milesial's U-Net; DATA=FOLDER: images and masks instead of drawn ones.
STEP = $(BIN)/python benchmarks/step_speed.py $(if $(MILESIAL),--milesial $(MILESIAL))
EPOCHS = $(BIN)/python benchmarks/training_speed.py $(if $(DATA),--data $(DATA))
FIGURES := build/benchmarks

bench: .venv/installed-dev
	$(BIN)/python benchmarks/startup.py --json $(FIGURES)/startup.json
	$(STEP) --rounds 3 --json $(FIGURES)/step.json
	$(EPOCHS) --rounds 3 --json $(FIGURES)/training.json
	$(BIN)/python benchmarks/data_check.py --pairs 1000 --json $(FIGURES)/data.json
	$(BIN)/python benchmarks/chart.py $(FIGURES)/step.json $(FIGURES)/training.json --out $(FIGURES)/speed.png

bench-gpu: .venv/installed-dev
	$(STEP) --compile own --json $(FIGURES)/step.json
	$(STEP) --compile own --batch 256 --json $(FIGURES)/step-batch-256.json
	$(STEP) --compile own --size 256 --json $(FIGURES)/step-256px.json
	$(EPOCHS) --compile --images 1024 --json $(FIGURES)/training.json
	$(BIN)/python benchmarks/chart.py $(FIGURES)/step.json $(FIGURES)/training.json --out $(FIGURES)/speed.png

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
