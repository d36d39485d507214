#!/usr/bin/env bash
# A CUDA build of torch on a machine without a GPU: the package builds, loads, registers its CUDA operators, traces
# them on fake CUDA tensors, and a real call ends in torch's own error. Needs nvcc and 6 GB for an environment of its
# own (build/check-cuda; kept, so that a second run is quick).
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
FOLDER=${1:-$ROOT/build/check-cuda}
TORCH=${TORCH:-torch}
PYTHON=$FOLDER/venv/bin/python

[ -x "$PYTHON" ] || python3 -m venv "$FOLDER/venv"
"$PYTHON" -c 'import torch; assert torch.version.cuda' 2>/dev/null ||
  "$PYTHON" -m pip install -q "$TORCH" setuptools wheel ninja pybind11 numpy
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'

# A copy, so that this build does not replace the objects of the environment in use.
rm -rf "$FOLDER/source" && mkdir -p "$FOLDER/source"
cp -r setup.py pyproject.toml README.md LICENSE build_tools csrc fastdl "$FOLDER/source" 2>/dev/null || true
rm -f "$FOLDER"/source/fastdl/*.so
cd "$FOLDER/source"
# One architecture is enough here: check_cuda_static.py compiles for all of them.
FASTDL_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-8.0} PATH="$FOLDER/venv/bin:$PATH" \
  "$PYTHON" setup.py build_ext --inplace >"$FOLDER/build.log" 2>&1 || { tail -30 "$FOLDER/build.log"; exit 1; }

"$PYTHON" "$ROOT/build_tools/check_cuda_loaded.py"
