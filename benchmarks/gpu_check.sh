#!/usr/bin/env bash
# Everything that only a GPU can tell, in under nine minutes on 16 cores, with no network:
#
#   benchmarks/gpu_check.sh FOLDER
#
# FOLDER gets one log a part, the benchmark tables, and summary.txt, which says how
# each part ended. A part that fails or runs out of its time does not lose the output of the others, and a
# benchmark that does has every row that it finished in its CSV. Needs torch with CUDA, nvcc of the same CUDA,
# ninja, pytest, tqdm and matplotlib; a FlashRNN wheel in wheels/ (optional) makes that opponent run.
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu_check.sh FOLDER}" && cd "$1" && pwd)
python=${PYTHON:-python3}
TORCH_EXTENSIONS_DIR=$(mktemp -d) # where FlashRNN compiles itself
trap 'rm -rf "$TORCH_EXTENSIONS_DIR"' EXIT
export out python TORCH_EXTENSIONS_DIR
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...
part() {
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  # A shell of its own, because timeout can run no function of this one; it ends at the first failure.
  timeout --kill-after=5 "$seconds" bash -ec '"$@"' "$name" "$@" >"$out/$name.log" 2>&1
  printf '%-26s exit %3d after %3d s\n' "$name" $? $((SECONDS - began)) | tee -a "$out/summary.txt"
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.cuda.get_device_name())'
  nvcc --version | tail -n 2
  git rev-parse HEAD 2>/dev/null || true
}

architecture() {
  "$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())'
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
  arch=$(architecture)
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
    "$python" -m pytest -q -m gpu -p no:cacheprovider tests/cuda/test_gpu.py \
    -k 'test_what_the_plan_chooses and (float16 or float32) or test_projected_lstm and float32'
}

# FlashRNN compiles itself at the first call of a batch size: here, beside the tests.
flashrnn() {
  "$python" -m pip install --no-index --no-deps --find-links wheels flashrnn
  "$python" benchmarks/run.py --grid long --filter cell=LSTM,B=16,T=1024 --backend cuda --opponent flashrnn \
    --graph off --quick --out "$out/flashrnn-first.csv"
}

# What a user's GPU does once, shortened: every kind of call right and timed, and the verdict left in FOLDER.
prove() {
  FASTRNN_CACHE_DIR=$out "$python" -m fastrnn prove --quick
}

# grid FILE SECONDS TIER ARGUMENTS... The tier is FASTRNN_CUDA_TIER: step, a launch a step, is the default of
# fastrnn; with auto the kernels that run a whole sequence in one launch serve where they can. A grid larger
# than its time is measured in a mixed order, so that what is measured stands for all of it.
grid() {
  local file=$1 seconds=$2 tier=$3
  shift 3
  FASTRNN_CUDA_TIER=$tier "$python" benchmarks/run.py --backend cuda --seconds-per-case 0.15 --shuffle \
    --stop-after $((seconds - 9)) --out "$out/$file.csv" "$@"
}

tables() {
  "$python" benchmarks/summary.py "$out"/bench-*.csv
}

export -f machine architecture build resources sanitize flashrnn prove grid tables

part machine 20 machine # the first import of torch may have to come from a slow disk
part build 120 build
# At the same time, for none of them is timed.
part resources 105 resources &
part memcheck 105 sanitize memcheck &
part racecheck 105 sanitize racecheck &
[ -d wheels ] && part flashrnn 105 flashrnn &
part first-call 105 "$python" -m pytest -q -m gpu tests/cuda/test_gpu.py -k the_first_call & # a whole proof of one pair
part gpu-tests 105 "$python" -m pytest -q -m gpu tests -k "not the_first_call"
wait # nothing else runs while times are taken
part prove 42 prove # one that is cut off leaves a verdict on what it got to
rm -f "$out"/bench-*.csv

bench() {
  part "bench-$1" "$2" grid "bench-$1" "${@:2}"
}
# Grids of a few dozen cases first. Those of hundreds get a sample; run.py without --stop-after takes all.
bench cudnn-best-auto 18 auto --grid cudnn-best
bench rl-auto 18 auto --grid rl
bench packed-auto 18 auto --grid packed
bench decode-step 15 step --grid decode
bench long-auto 18 auto --grid long
find "$TORCH_EXTENSIONS_DIR" -name lock -delete # of a compilation that was cut off; waiting for it never ends
[ -d wheels ] && bench long-flashrnn 18 auto --grid long --filter cell=LSTM,B=16 --opponent flashrnn
bench sizes-auto 18 auto --grid sizes
bench sizes-step 15 step --grid sizes
bench odd-auto 15 auto --grid odd
bench odd-step 15 step --grid odd
part tables 10 tables

cat "$out/tables.log" "$out/summary.txt"
! grep -qv 'exit   0' "$out/summary.txt"
