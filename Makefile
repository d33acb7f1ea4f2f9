# `make demo` and `make test` are the two commands; both do the set-up first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
# A module's tests share what they set up. In order, so that the longest modules don't come last.
PYTEST := python -m pytest --dist loadscope --no-loadscope-reorder
# One worker more than cores, as some wait for servers and processes; of the longest tests each has several of its own.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() + 1, 8))')
# Stages are started as `python` by DVC, so the environment's own comes first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Nothing here reports home.
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help setup demo ui check style types test test-all lock clean

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(VENV)/.made ## Make .venv from requirements.lock, again only if the lock changed; set up the merge of dvc.lock
	@if git rev-parse --git-dir >/dev/null 2>&1; then git config merge.ours.driver true; fi

$(VENV)/.made: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"expected Python 3.11 or newer, found {v.major}.{v.minor}; run make PYTHON=python3.11") if v < (3, 11) else None'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

demo: setup ## Run the graph of the methods in `run` of params.yaml on the demo's log; print what came of it
	python -m pipelines check
	dvc repro $$(python -m pipelines targets)
	@python -m pipelines results

ui: setup ## Start a Prefect server on this machine, serve the nightly run, print where its pages are
	python -m pipelines ui

check: setup ## Format, lint, types, layers, params and graph
	@$(MAKE) --no-print-directory --jobs 2 types style

style:
	ruff format --check .
	ruff check .
	lint-imports
	codespell
	python -m pipelines check

types:
	mypy

# One thread a worker, where there is a worker a core: threads that wait for each other take three times as long.
test test-all: export OMP_NUM_THREADS := 1

test: check ## Everything that make check does, and all tests but the longest and those that need a GPU
	$(PYTEST) -n $(WORKERS) -m 'not gpu and not long'

test-all: check ## The same with the longest tests; what CI runs
	$(PYTEST) -n auto -m 'not gpu'

lock: ## Resolve pyproject.toml anew into requirements.lock, in an environment of its own
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0
	.venv-lock/bin/python -m pip install --quiet '.[diffusion,ray,s3]' --group dev
	.venv-lock/bin/python -m pip uninstall --quiet --yes plumbline
	{ echo "# Made by \`make lock\` from pyproject.toml; every package that the project runs with."; \
	  .venv-lock/bin/python -m pip freeze --exclude pip | sed -E 's/\+cpu$$//'; } > requirements.lock
	rm -rf .venv-lock build *.egg-info

clean: ## Remove the environment and all scratch; artifacts and DVC's cache stay
	rm -rf $(VENV) .cache checkpoints build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
