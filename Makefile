# `make run` and `make test` set up what they need in $(VENV) first; a second call goes straight on.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test bench gpu gpu-packages claims claims-check mutations lint format types clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) (3.10 to 3.13), VENV=$(VENV), ARGS='' (for run, test, bench, gpu, claims and mutations)"

run: $(VENV)/.installed ## run the benchmark on the bundled tiny GPT-2, offline
	HF_HUB_OFFLINE=1 $(BIN)/sphere-bench run $(ARGS)

test: $(VENV)/.installed-dev ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

bench: $(VENV)/.installed ## time a batch against the published algorithm and the machine
	$(BIN)/python scripts/benchmark.py $(ARGS)

gpu: ## prove on a machine with a GPU what only it can; installs nothing (docs/gpu.md)
	PYTHON=$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/gpu_check.sh $(ARGS)

# Pure Python: on a machine without network, these and torch with its companions are enough.
gpu-packages: ## put what `make gpu` needs besides torch into build/gpu-packages
	rm -rf build/gpu-packages
	$(PYTHON) -m pip install --disable-pip-version-check -q -c constraints.txt --no-deps --target \
		build/gpu-packages hydra-core omegaconf antlr4-python3-runtime pytest pluggy iniconfig pygments

claims: $(VENV)/.installed-dev ## answer the three claims on a real model; goes on where it was cut off
	$(BIN)/python -m scripts.claims run $(ARGS)

claims-check: $(VENV)/.installed ## recompute the tables of results/claims and effects.csv from its tables
	$(BIN)/python -m scripts.claims check

mutations: $(VENV)/.installed-dev ## check that the tests notice wrong mathematics
	$(BIN)/python scripts/mutation_check.py $(ARGS)

lint: $(VENV)/.installed-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## put style and formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev ## check types
	$(BIN)/mypy

clean: ## remove the environment, builds and caches; results stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find sphere_bench scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(REQUIREMENTS) | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev,gguf]'
	touch $@ $(VENV)/.installed
