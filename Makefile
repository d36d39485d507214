# make setup | demo | test | test-fast | lint | bench | time-build | check-kernels | check-cuda | gpu STAGE=build|test|sanitize|bench
.DEFAULT_GOAL := setup
SHELL := /bin/bash

TORCH ?= torch==2.13.0
OUT ?= runs/gpu
STAGE ?= build

# The active environment if it has a torch that is new enough, else .venv.
HAS_TORCH := import sys; from importlib.metadata import version; \
	sys.exit([*map(int, version("torch").split(".")[:2])] < [2, 11])
PYTHON := $(shell python3 -c '$(HAS_TORCH)' 2>/dev/null && command -v python3 || echo $(CURDIR)/.venv/bin/python)
WORKERS ?= $(shell nproc)
# What the extra "dev" names: installing the extra itself would build the kernels once more.
DEV := from importlib.metadata import requires; \
	print(*(r.partition(";")[0].replace(" ", "") for r in requires("fastdl") if "\"dev\"" in r))
STAMP := build/setup-$(subst /,_,$(PYTHON))
SOURCES := setup.py pyproject.toml $(wildcard build_tools/*.py fastdl/ops/*/schema.py) $(shell find csrc -type f)

.PHONY: setup demo test test-fast lint format bench time-build check-static check-kernels check-cuda gpu clean

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@if [ ! -x "$(PYTHON)" ]; then python3 -m venv .venv; fi
	@"$(PYTHON)" -c '$(HAS_TORCH)' 2>/dev/null || "$(PYTHON)" -m pip install -q "$(TORCH)"
	"$(PYTHON)" -m pip install -q -e ".[test,demo]"
	@mkdir -p build && touch "$@"
	@"$(PYTHON)" -m fastdl info

demo: setup
	"$(PYTHON)" -m fastdl train convnet --compare --out runs/demo

test: setup
	"$(PYTHON)" -m pytest -n $(WORKERS) --dist worksteal

test-fast: setup
	"$(PYTHON)" -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not nightly and not long" tests

lint: setup
	@"$(PYTHON)" -c 'import clang_format, ruff' 2>/dev/null || "$(PYTHON)" -m pip install -q $$("$(PYTHON)" -c '$(DEV)')
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .
	"$(PYTHON)" build_tools/check_format.py

format: setup
	"$(PYTHON)" -m ruff check --fix .
	"$(PYTHON)" -m ruff format .
	"$(PYTHON)" build_tools/check_format.py --fix

bench: setup
	"$(PYTHON)" benchmarks/run.py

# The CPU kernels from clean, on two cores: minutes.
time-build: setup
	"$(PYTHON)" build_tools/time_build.py

# What a machine with nvcc and triton, but no GPU, can say about the GPU kernels.
check-static: setup
	"$(PYTHON)" build_tools/check_cuda_static.py
	"$(PYTHON)" build_tools/compile_triton.py

check-kernels: setup
	"$(PYTHON)" build_tools/check_kernels.py

check-cuda:
	bash build_tools/check_cuda.sh

gpu:
	bash build_tools/gpu.sh "$(STAGE)" "$(OUT)"

clean:
	rm -rf build dist fastdl/*.so *.egg-info
