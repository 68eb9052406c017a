# make quickstart   a small detector, trained and evaluated on generated images
# make test         the default test suite
# make test-faults  what can go wrong with a run, done to it
# make lint         ruff and mypy
# make docs         the site, in site/index.html
# PYTHON=python3.13 takes another Python, VENV=.venv-3.13 another environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHAPES := data/shapes
RUN := runs/quickstart
CONFIG := configs/quickstart.py
PYTEST := --numprocesses=3 --dist=loadfile --no-loadscope-reorder

.PHONY: quickstart test test-faults test-short lint docs clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/installed $(SHAPES)/annotations/val.json
	$(BIN)/python -m mixtrain_jax.train --config=$(CONFIG) --workdir=$(RUN)
	$(BIN)/python -m mixtrain_jax.evaluate --workdir=$(RUN)
	$(BIN)/python -m mixtrain_jax.predict --checkpoint=$(RUN) \
	  --output=$(RUN)/predictions $$(ls $(SHAPES)/val/*.jpg | head -n 8)

# First what compares with the released code and what runs the commands, compiled as users have it;
# then all the rest, which needs no fast programs. Three processes keep two cores busy, as tests of
# processes wait a lot.
test: $(VENV)/installed-dev
	MIXTRAIN_AS_USERS=1 $(BIN)/python -m pytest -m "(golden or command) and not slow" $(PYTEST)
	$(BIN)/python -m pytest -m "not golden and not command and not slow" $(PYTEST)

# Tests of some folders only: make test-short TESTS="tests/data tests/ops"
test-short: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST) $(TESTS)

# An hour: all that is done to runs, kills and stuck hosts among it (docs/reliability.md).
test-faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_faults.py tests/test_audit.py \
	  tests/test_processes.py tests/test_hosts.py tests/test_kills.py tests/test_launchers.py \
	  tests/test_bucket.py tests/test_restart_loop.py tests/runtime tests/config tests/training \
	  tests/data/test_read_errors.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A broken link or an anchor that is not there is an error (with --quiet it is not); nothing is fetched.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-* .cache site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/installed-dev: pyproject.toml requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(VENV)/installed $@

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# The file that the generator writes last.
$(SHAPES)/annotations/val.json: | $(VENV)/installed
	$(BIN)/python tools/make_shapes.py --output=$(SHAPES)
