# make setup      .venv from requirements.lock, the package installed in it
# make reproduce  the quick InvertedPendulum experiment
# make test       the tests
# make pages      every command, snippet and notebook of the documentation, as it is written there
# make lint       style and types
# make docs       the site, in site/; a warning is an error
# make dist       the wheel and the source, in dist/
#
# PYTHON is the interpreter that makes the virtual environment, VENV is where it lies.
#
# Everything comes from PyPI. There, torch for Linux carries CUDA, some gigabytes of it. A machine without a GPU can do
# without:  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup

PYTHON ?= python3
VENV ?= .venv

.PHONY: setup reproduce test pages lint docs dist

setup: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tipl needs Python 3.11 or newer; name one: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --requirement requirements.lock
	$(VENV)/bin/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: setup
	$(VENV)/bin/tipl reproduce inverted-pendulum --preset quick

# One thread a worker, since there are more workers than cores. Tests start interpreters by the hundred, so what Python compiles is kept.
test: export OMP_NUM_THREADS ?= 1
test pages: export PYTHONDONTWRITEBYTECODE =

test: setup
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

pages: setup
	$(VENV)/bin/python -m pytest -m pages tests/test_docs.py tests/test_notebooks.py --numprocesses auto

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/docs-installed: requirements-docs.lock $(VENV)/installed
	$(VENV)/bin/python -m pip install --no-deps --requirement requirements-docs.lock
	@touch $@

dist: setup
	$(VENV)/bin/python -m hatchling build
