# make demo   a virtual environment, the package, and the main job on generated tissue (ARGS=... for options)
# make test   what the tests need, and the tests (ARGS=... for pytest)
# make lint   formatting, types and import contracts
# Needs python3 (3.11 or later), make and a package index; nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test lint clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '1,3s/^# //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/gan-uad demo $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gan_uad encoders
	$(BIN)/lint-imports

# The stamp file is written only after success, so that an interrupted install is resumed and a finished one is not repeated.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "gan_uad needs Python 3.11 or later, and '$(PYTHON)' is not: name one, as in 'make demo PYTHON=python3.11'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find gan_uad encoders tests scripts -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
