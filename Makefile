# make demo   a venv, the install, and DPO on the small model that ships; nothing is downloaded but packages
# make test   the same venv with the developers' tools, and the fast tests
# make bench  TRL in an environment of its own, and the comparison with it (docs/benchmarks.md)
VENV   ?= .venv
PEER   ?= .venv-trl
PYTHON ?= python3
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two test processes with one thread each beat one process with two.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

.PHONY: demo test test-slow test-offline lint format bench bench-rollouts bench-steps docs clean

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.runtime pyproject.toml constraints.txt
	$(PIP) -e '.[docs]'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

# The fast tests where there is no network but the loopback (Linux).
test-offline: $(VENV)/.dev
	$(BIN)/python scripts/without_network.py env $(PYTEST) -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# TRL is compared with, and never needed: it lives in an environment of its own, with our versions of the rest.
$(PEER)/.made: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    trl==1.16.0 torch transformers peft psutil
	touch $@

bench: $(VENV)/.dev $(PEER)/.made
	$(BIN)/python benchmarks/compare.py --peer $(PEER)/bin/python

bench-rollouts: $(VENV)/.dev
	$(BIN)/python benchmarks/rollouts.py

bench-steps: $(VENV)/.dev
	$(BIN)/python benchmarks/steps.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet --site-dir build/docs
	@echo "docs are in build/docs/index.html"

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
