# `make demo` and `make test` are all that a fresh machine needs: Python >= 3.11 and make.
# Both share one virtual environment, made on first use and again only when a pin changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# A convenience for machines that keep data beside their checkouts: where LMSCOUT_DATA is not
# set and ../shared/data exists, benchmarks are read from there.  Without either they are
# downloaded once into the user's cache directory.
ifeq ($(origin LMSCOUT_DATA),undefined)
ifneq ($(wildcard ../shared/data/.),)
export LMSCOUT_DATA := $(abspath ../shared/data)
endif
endif

# What `make` asks of the interpreter: nothing where it will do, else what is wrong with it.
unfit = $(shell $(PYTHON) -c 'import sys; v = sys.version_info; \
	v >= (3, 11) or sys.stdout.write("is Python %d.%d" % v[:2])' 2>/dev/null || echo cannot be run)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint reference docs clean

help:
	@echo 'make demo       discover and prune, on what comes with lmscout'
	@echo 'make test       run the tests'
	@echo 'make lint       check style, types and the direction of imports'
	@echo 'make reference  write docs/proxies.md, docs/options.md and notebooks/ from their sources'
	@echo 'make docs       build the documentation in docs/_build/html; tutorials are executed'
	@echo 'make clean      remove .venv and every cache; runs/ stays'

demo: $(INSTALLED)
	$(BIN)/lmscout demo

# Two at a time: many tests start processes of their own, which wait more than they compute.  In the
# order of tests/conftest.py, the longest files first.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(INSTALLED)
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_options.py
	$(BIN)/python docs/make_notebooks.py

# A warning, a link that leads nowhere, or a tutorial that fails ends it.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html
	@echo 'Documentation: docs/_build/html/index.html'

# The stamp is written last: an install that was interrupted is done again.  Modules are compiled
# when they are first imported: most never are.
$(INSTALLED): pyproject.toml constraints.txt
	$(if $(unfit),$(error $(PYTHON) $(unfit), and lmscout needs Python 3.11 or later: \
		name one, as in `make PYTHON=python3.12 $(firstword $(MAKECMDGOALS))`))
	@echo 'Installing lmscout into $(VENV); the first time takes a few minutes.'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
