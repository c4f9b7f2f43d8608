# make venv | test | test-slow | lint | format | demo | docs | ptx | wheel | clean
#   PYTHON=python3.12 chooses another interpreter, EXTRAS=cuda (or tpu, gcs; by commas) installs more, WORKERS=1 runs
#   fewer tests at a time
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=
BIN := $(VENV)/bin
comma := ,
# Compilations, most of the tests' time, are of one thread each: one process more than cores, since some wait for runs of
# the command. A file's tests share theirs, so files stay whole; in their order, as the shortest lists hold the longest tests.
WORKERS ?= 3
STAMP := $(VENV)/installed$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: venv test test-slow lint format demo docs ptx wheel clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) '.[test,lint,records,geo,export,onnx$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	touch $@

# The TPU compiler, 700 MB that only `haksnet plan` and its tests need; elsewhere than on x86 Linux there is none, and its
# tests are skipped.
$(VENV)/installed-plan: pyproject.toml | $(STAMP)
	$(INSTALL) '.[plan]'
	touch $@

test: venv $(VENV)/installed-plan
	$(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: venv $(VENV)/installed-plan
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: venv
	JAX_PLATFORMS=cpu $(BIN)/haksnet train --config=demo --workdir=runs/demo
	$(BIN)/python -m haksnet_jax.cli.demo_files --scenes=runs/demo_scenes
	@echo; echo 'Next, with the environment: . $(BIN)/activate'
	@echo '  haksnet predict --checkpoint=runs/demo --images=runs/demo_scenes/images --output=runs/found'
	@echo '  haksnet evaluate --predictions=runs/found --labels=runs/demo_scenes/labelTxt'

docs: venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'mkdocs-material>=9.6'
	$(BIN)/python -m haksnet_jax.cli.reference
	$(BIN)/mkdocs build --quiet

ptx: $(addprefix haksnet_jax/kernels/cuda/, attention.ptx depthwise.ptx gated_mlp.ptx gates.ptx matching.ptx narrow.ptx \
    partial_conv.ptx roi_align.ptx rpn.ptx selection.ptx squeeze_excite.ptx suppression.ptx)

# What CUDA's compiler makes of a kernel (nvcc 13), without its comments and in the version of PTX that drivers of CUDA 11.8
# and newer read, which knows no used_bytes_mask, a hint. Instructions of Hopper alone need a later one, and name their GPU;
# nvcc checks them where it is told of that GPU, and does not know the numbers that Python writes in later, so the target is
# named afterwards.
HOPPER := $(addprefix haksnet_jax/kernels/cuda/, gated_mlp.ptx rpn.ptx)
$(HOPPER): PTX_VERSION := 8.0
$(HOPPER): PTX_TARGET := sm_90a
$(HOPPER) haksnet_jax/kernels/cuda/roi_align.ptx: haksnet_jax/kernels/cuda/hopper.h
haksnet_jax/kernels/cuda/%.ptx: haksnet_jax/kernels/cuda/%.cu haksnet_jax/kernels/cuda/target.h
	nvcc -arch=compute_80 -ptx -O3 -std=c++17 -o $@.raw $<
	sed -e 's://.*$$::' -e 's/[[:space:]]*$$//' -e '/^$$/d' -e '/\.pragma "used_bytes_mask /d' \
	    -e 's/^\.version .*/.version $(or $(PTX_VERSION),7.8)/' \
	    -e 's/^\.target .*/.target $(or $(PTX_TARGET),sm_80)/' $@.raw > $@.body
	echo "// sources and text: sha256 $$(cat $^ $@.body | sha256sum | cut -d' ' -f1)" | cat - $@.body > $@.new
	mv $@.new $@; rm $@.raw $@.body

wheel: venv
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .cache .pytest_cache .ruff_cache
