# make quickstart   a small detector, trained and evaluated on generated pictures
# make test         the default test suite
# make lint         ruff and mypy

PYTHON ?= python3
BIN := .venv/bin
SHAPES := data/shapes
RUN := runs/quickstart
CONFIG := configs/quickstart.py

.PHONY: quickstart test lint clean
.DELETE_ON_ERROR:

# Small convolutions keep one core busy; two devices keep two.
quickstart: export JAX_NUM_CPU_DEVICES ?= 2
quickstart: .venv/installed $(SHAPES)/annotations/val.json
	$(BIN)/python -m mixtrain_jax.train --config=$(CONFIG) --workdir=$(RUN)
	$(BIN)/python -m mixtrain_jax.evaluate --config=$(CONFIG) --workdir=$(RUN) \
	  --output=$(RUN)/detections.json
	$(BIN)/python -m mixtrain_jax.predict --config=$(CONFIG) --checkpoint=$(RUN) \
	  --output=$(RUN)/predictions $$(ls $(SHAPES)/val/*.jpg | head -n 8)

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv .cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

# The file that the generator writes last.
$(SHAPES)/annotations/val.json: | .venv/installed
	$(BIN)/python tools/make_shapes.py --output=$(SHAPES)
