#!/usr/bin/env bash
# Everything that only a GPU can tell, in under ten minutes on 16 cores, with no network:
#
#   benchmarks/gpu_check.sh FOLDER
#
# FOLDER gets one log a part, the benchmark tables, and summary.txt, which says how each part ended. A
# part that fails or runs out of its time does not lose the output of the others. Needs torch with CUDA,
# nvcc of the same CUDA, ninja and pytest; a FlashRNN wheel in wheels/ (optional) makes that opponent run.
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu_check.sh FOLDER}" && cd "$1" && pwd)
python=${PYTHON:-python3}
export out python
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...
part() {
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  # A shell of its own, because timeout can run no function of this one; it ends at the first failure.
  timeout --kill-after=5 "$seconds" bash -ec '"$@"' "$name" "$@" >"$out/$name.log" 2>&1
  printf '%-12s exit %3d after %3d s\n' "$name" $? $((SECONDS - began)) | tee -a "$out/summary.txt"
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  nvcc --version | tail -n 2
  git rev-parse HEAD 2>/dev/null || true
}

build() {
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
  FASTRNN_CUDA=1 MAX_JOBS=$(nproc) "$python" setup.py build_ext --inplace
}

# The compiler's word on every kernel, for the GPU at hand: a file for each cell, and a table of
# registers, stack bytes and bytes spilled.
resources() {
  local arch file pid pids=()
  arch=$("$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')
  for file in csrc/cuda/inst/*.cu; do
    nvcc -std=c++20 -O3 -arch="$arch" -Xptxas -v -c "$file" -o /dev/null \
      >"$out/resources-$(basename "$file" .cu).txt" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
  cat "$out"/resources-*.txt | c++filt | awk -F"'" '
    /Compiling entry/ { kernel = $2 }
    /bytes stack frame/ { split($0, word, " "); stack = word[1]; spilled = word[5] }
    /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); print substr($0, RSTART + 5, RLENGTH - 5), stack, spilled, kernel }'
}

# One tool of the sanitizer over a few small shapes; it slows a kernel down by an order of magnitude.
sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 99 --target-processes all \
    "$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_gpu.py \
    -k 'test_what_the_plan_chooses and (float16 or float32) or test_projected_lstm and float32'
}

flashrnn() {
  "$python" -m pip install --no-index --no-deps --find-links wheels flashrnn
}

grid() {
  "$python" benchmarks/run.py --grid "$1" --backend cuda --out "$out/$1.csv"
}

# The kernels that run a whole sequence in one launch, which are opt-in.
resident() {
  FASTRNN_CUDA_TIER=auto "$python" benchmarks/run.py --grid "$1" --backend cuda --out "$out/resident-$1.csv"
}

export -f machine build resources sanitize flashrnn grid resident

part machine 10 machine
part build 120 build
part resources 90 resources &
part gpu-tests 130 "$python" -m pytest -q -m gpu tests
part memcheck 55 sanitize memcheck
part racecheck 55 sanitize racecheck
wait # nothing else runs while times are taken
[ -d wheels ] && part flashrnn 15 flashrnn
for name in cudnn-best decode odd sizes; do
  part "bench-$name" 40 grid "$name"
done
part bench-resident 40 resident sizes

cat "$out/summary.txt"
! grep -qv 'exit   0' "$out/summary.txt"
