# make venv | test | test-slow | lint | format | demo | clean      PYTHON=python3.12 chooses another interpreter, WORKERS=1 fewer processes for the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compilations, most of the tests' time, are of one thread each: one process more than cores, since some wait for runs of
# the command. A file's tests share theirs, so files stay whole; in their order, as the shortest lists hold the longest tests.
WORKERS ?= 3
STAMP := $(VENV)/installed

.PHONY: venv test test-slow lint format demo wheel clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,geo]'
	touch $@

test: venv
	$(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: venv
	JAX_PLATFORMS=cpu $(BIN)/python -m haksnet_jax.main --config=configs/demo.py --workdir=runs/demo

wheel: venv
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .cache .pytest_cache .ruff_cache
