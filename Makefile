# `make demo` and `make test` do all the set-up themselves: virtual environment, torch, build tools, the extension.
#
#   make demo                       what was built, a check against torch.nn, the CUDA kernels' proof where there is a
#                                   GPU, then a language model trained both ways
#   make test ARGS="-k packed"      the tests; ARGS goes to pytest
#   make fuzz ARGS="--seed 7"       10,000 random calls against torch.nn (--cases, --start)
#   make ptx ARGS="-k sm_90"        the compiled PTX of all CUDA kernels, interpreted; needs nvcc, not a GPU
#   make forwards                   records the cells' forwards for the reference, after one has changed
#   make lint bench clean
#
#   TORCH=torch==2.14.1             another torch; with CUDA kernels if it has CUDA and nvcc is found
#   VENV=.venv-cuda                 another environment, to keep both
#   MAX_JOBS=1                      fewer compilers at once; each takes up to 2 GB

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
FORMATTED := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
BUILD_SETTINGS := $(abspath $(VENV)) $(TORCH) cuda=$(FASTRNN_CUDA) archs=$(TORCH_CUDA_ARCH_LIST)

# Writes its argument to the target only where it differs, so that what depends on it is redone only then.
record = @mkdir -p $(@D) && echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
# pip shows a compiler at work only with -v, page-long commands and file lists included: keep the count and the names.
NOISE := changing mode|adding|writing|reading|copying|creating|removing|Requirement already
shorten = sed -u -E '/^ *($(NOISE)) /d; s|^ *(\[[0-9]+/[0-9]+\]) .* -c [^ ]*/(csrc/[^ ]+) .*|\1 \2|'

.PHONY: demo test fuzz ptx forwards build lint bench clean FORCE
demo: build
	$(BIN)/python -m fastrnn info
	$(BIN)/python -m fastrnn check
# 1: what it has just called wrong is never chosen; 2: there is no GPU, or no kernels for it; 3: a later call tries again.
	$(BIN)/python -m fastrnn prove || [ $$? -le 3 ]
	$(BIN)/python examples/char_lm.py --out runs/demo $(ARGS)

# Workers share the cores, so idle OpenMP threads must sleep rather than spin.
test: build
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: build $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/python -m pytest -q tests/tools/test_layering.py

fuzz: build
	cd tests/api && OMP_WAIT_POLICY=passive $(abspath $(BIN))/python -m fuzz $(ARGS)

forwards: build
	$(BIN)/python -c "from fastrnn import _C; from fastrnn.reference import recorded as r; r.FILE.write_text(r.dump(_C.cells()))"

# A worker for each architecture.
ptx: build
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadgroup tests/emulator/ptx/every_kernel.py $(ARGS)

bench: build
	$(BIN)/python benchmarks/run.py $(or $(ARGS),--grid cpu)

clean:
	rm -rf build dist *.egg-info fastrnn/_C.* fastrnn/_build_info.py .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path '*/.venv*' -prune -exec rm -rf {} +

build: build/.installed

$(VENV)/.torch-wanted: FORCE
	$(call record,$(TORCH))

$(VENV)/.torch-installed: $(VENV)/.torch-wanted
	$(PYTHON) -m venv $(VENV)
	$(PIP) install '$(TORCH)' 'setuptools>=77' ninja
	@touch $@

$(VENV)/.linters: $(VENV)/.torch-installed
	$(PIP) install -q ruff clang-format
	@touch $@

# The tree holds one build at a time, whichever environment it was made for.
build/.settings: FORCE
	$(call record,$(BUILD_SETTINGS))

build/.installed: build/.settings $(VENV)/.torch-installed $(SOURCES)
	$(PIP) install -v --no-build-isolation -e '.[test,examples,bench]' 2>&1 | $(shorten)
	@touch $@
