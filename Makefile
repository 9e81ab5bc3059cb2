# `make run` rebuilds everything, `make test` passes the tests (`make test-unit` the quick ones, `make test-slow` the long ones), `make scorer` makes a judge of English, `make ui` opens MLflow, `make server` serves it to others, `make docs` builds the site, `make audit` reports. Each sets up .venv first.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUTF8 := 1
# Every stage is a process of its own: where this is set, as containers like to, each compiles torch's sources again.
unexport PYTHONDONTWRITEBYTECODE

PROSE = README.md CONTRIBUTING.md $(wildcard docs/*.md)
PYTEST = python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-unit test-slow scorer ui server lint docs audit setup clean-venv
.DELETE_ON_ERROR:

run: setup
	halfstep repro
	halfstep summary

test: setup
	$(PYTEST)

# No DVC, no other processes, no stages: for while you work.
test-unit: setup
	$(PYTEST) -m unit

# The long versions of some tests: more kills, more rounds, more stages.
test-slow: setup
	python -m pytest -m slow

scorer: setup
	python scripts/scorer.py

lint: setup
	ruff check .
	ruff format --check .
	mypy
	python scripts/prose.py $(PROSE) src stages benchmarks

docs: setup
	python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 mkdocs build

# Reports, which fail nothing: neither a finding nor an index that cannot be reached.
audit: setup
	-python -m pip install --quiet --disable-pip-version-check --retries 0 --timeout 5 --constraint constraints.txt --editable '.[audit]'
	-python scripts/audit.py

ui: setup
	halfstep ui

# MLflow for several clients; its own variables say where: docs/operations.md#an-mlflow-server.
server: setup
	halfstep server

setup: .venv/.installed

# An environment is of use in the folder in which it was made, which it names in all its scripts: elsewhere it is made again.
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/.installed
.venv/.installed: clean-venv
endif

# Python compiles a module when it is first imported; to compile all that is installed takes a minute and more.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "halfstep needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	pwd -P > .venv/.installed

clean-venv:
	rm -rf .venv
