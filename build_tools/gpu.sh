#!/usr/bin/env bash
# One stage on a machine with a GPU, with the environment's own torch and no network; results under OUT.
# Stages: build, test, sanitize, bench. Each stays under 9 minutes; the later ones build first if needed.
set -euo pipefail
cd "$(dirname "$0")/.."
STAGE=$1
OUT=$(mkdir -p "$2" && cd "$2" && pwd)
PYTHON=${PYTHON:-python3}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD

build() { FASTDL_CUDA=1 "$PYTHON" setup.py build_ext --inplace 2>&1 | tee "$OUT/build.log"; "$PYTHON" -m fastdl info; }
ls fastdl/_cuda.*so >/dev/null 2>&1 || build

case "$STAGE" in
  build) ls -l fastdl/*.so ;;
  test) "$PYTHON" -m pytest tests/gpu -q 2>&1 | tee "$OUT/test.log" ;;
  sanitize)
    for tool in memcheck racecheck initcheck synccheck; do
      echo "== $tool"
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 86 --print-limit 20 \
        "$PYTHON" -m pytest tests/gpu -q -k small 2>&1 | tee "$OUT/$tool.log"
    done
    ;;
  bench) "$PYTHON" benchmarks/run.py --device cuda --out "$OUT" 2>&1 | tee "$OUT/bench.log" ;;
  *) echo "STAGE must be build, test, sanitize or bench, got '$STAGE'" >&2; exit 2 ;;
esac
