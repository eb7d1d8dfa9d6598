# What people and machines run; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# At most 10 minutes on 2 cores, and a stranger's machine may have many more: use what is there.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all lint bench bench-transfer reproduce-weights lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 13) or sys.exit(f"lightning_faces needs Python 3.10 to 3.12, but $(PYTHON) is {v.major}.{v.minor}: run make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

install: $(VENV)/installed  ## make the virtual environment from requirements.lock

quickstart: install  ## train, score and compare in under 10 minutes, without a GPU or data
	$(BIN)/python benchmarks/quickstart.py

test: install  ## the default test suite (under 8 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(JOBS)

test-all: install  ## all tests, the slow ones too
	$(BIN)/python -m pytest -n $(JOBS) -m ""

lint: install  ## formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## the benchmarks whose numbers stand in the README
	$(BIN)/python benchmarks/rendering.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/prnet.py

bench-transfer: install  ## synthetic training to photographs: AFLW2000-3D in LIGHTNING_FACES_DATA, 40 minutes on 2 cores
	$(BIN)/python benchmarks/transfer.py

reproduce-weights: install  ## train and score the shipped weights again: an hour on 2 cores
	$(BIN)/python benchmarks/weights.py

lock: install  ## rewrite requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
		--extra render --extra sweep --extra scans --extra h5 --extra export --extra dev \
		--custom-compile-command 'make lock' pyproject.toml -o requirements.lock

clean:  ## remove the environment and what runs left
	rm -rf $(VENV) runs cache
