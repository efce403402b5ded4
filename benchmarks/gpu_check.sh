#!/usr/bin/env bash
# Everything that only a GPU can tell, in three commands of under nine minutes each on 16 cores, with no network:
#
#   benchmarks/gpu_check.sh correctness FOLDER    build, first steps of every tier, GPU tests by tier, sanitizers
#   benchmarks/gpu_check.sh speed FOLDER          barriers, every tier forced, the grids, a profile by tier
#   benchmarks/gpu_check.sh proof FOLDER          python -m fastrnn prove, and the verdict that it writes
#
# A third argument, a regular expression, names the parts to run: 'machine|build|first-.*'.
#
# The others need the build of the first, in the same tree. FOLDER gets two files for a command: COMMAND.txt, how each
# part ended, and COMMAND.tar.gz, all that the parts have left. Both are renewed after every part, so a command that is
# cut off has the parts before. A part that fails or runs out of its time does not stop the others, except the build.
# Needs torch with CUDA, nvcc of the same CUDA, ninja, pytest, tqdm and matplotlib; compute-sanitizer and ncu for their
# parts. The wheels of FlashRNN, or of torchrl and what it needs beside torch, in wheels/ (optional) make these opponents
# run.
set -u
usage="usage: benchmarks/gpu_check.sh correctness|speed|proof FOLDER [PARTS]"
cd "$(dirname "$0")/.."
command=${1:?$usage}
home=$(mkdir -p "${2:?$usage}" && cd "$2" && pwd)
parts=${3:-.*}
python=${PYTHON:-python3}
out=$(mktemp -d)
TORCH_EXTENSIONS_DIR=$(mktemp -d) # where FlashRNN compiles itself
trap 'rm -rf "$out" "$TORCH_EXTENSIONS_DIR"; kill $(jobs -p) 2>/dev/null' EXIT
trap 'exit 130' INT TERM
export out python TORCH_EXTENSIONS_DIR
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...
part() {
  local name=$1 seconds=$2 began=$SECONDS code
  shift 2
  [[ $name =~ ^($parts)$ ]] || return 0
  # A shell of its own, because timeout can run no function of this one; it ends at the first failure.
  timeout --kill-after=5 "$seconds" bash -ec '"$@"' "$name" "$@" >"$out/$name.log" 2>&1
  code=$?
  printf '%-26s exit %3d after %3d s\n' "$name" "$code" $((SECONDS - began)) | tee -a "$out/summary.txt"
  (
    flock 9 # parts that run at the same time write one after another
    cp "$out/summary.txt" "$home/$command.txt"
    tar -C "$out" -czf "$home/$command.new" . && mv "$home/$command.new" "$home/$command.tar.gz"
  ) 9>"$TORCH_EXTENSIONS_DIR/lock"
  return "$code"
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.cuda.get_device_name())'
  nvcc --version | tail -n 2
  git rev-parse HEAD 2>/dev/null || true
}

build() {
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
  FASTRNN_CUDA=1 MAX_JOBS=$(nproc) "$python" setup.py build_ext --inplace
}

# tests EXPRESSION: the GPU tests that it names, one line each as they end; a test that hangs says where. Most of their
# time goes into the formulas, on the CPU: where pytest-xdist is, several processes share a part but the first steps.
tests() {
  local workers=()
  if [[ $1 != four_steps* ]] && "$python" -c 'import xdist' 2>/dev/null; then
    workers=(-n $(($(nproc) / 4 + 1)))
  fi
  "$python" -m pytest -v -m gpu -p no:cacheprovider -o faulthandler_timeout=60 "${workers[@]}" "$gpu_tests" -k "$1"
}

# One tool of the sanitizer over the first steps of every tier, each allocation on its own. initcheck does not see what
# the library's tensor core kernels write with bulk copies, so it gets float32 without tf32.
sanitize() {
  local steps=four_steps
  [ "$1" != initcheck ] || steps="four_steps and float32"
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 99 --target-processes all \
    --print-limit 20 "$python" -m pytest -q -m gpu -p no:cacheprovider "$gpu_tests" -k "$steps"
}

# FlashRNN compiles itself at the first call of a batch size. Its release 1.0.8 prints fields of a GPU that CUDA 13 does
# not have, and does not compile there.
flashrnn() {
  "$python" -m pip install --no-index --no-deps --find-links wheels flashrnn
  "$python" benchmarks/run.py --grid long --filter cell=LSTM,B=16,T=1024 --backend cuda --opponent flashrnn \
    --graph off --quick --out "$out/flashrnn-first.csv"
}

# torchrl's Triton kernels are tuned at the first call of a shape.
torchrl() {
  "$python" -m pip install --no-index --find-links wheels torchrl
  grid bench-rl-torchrl 50 measured --grid rl --filter 'cell=LSTM|GRU,dtype=float32' --precision tf32 --opponent torchrl
}

# The latency of barriers and launches.
barriers() {
  nvcc -std=c++20 -O3 -arch="$("$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')" \
    -o "$out/barriers" benchmarks/barriers.cu
  "$out/barriers" >"$out/barriers.csv"
  rm "$out/barriers"
  cat "$out/barriers.csv"
}

# Every kind of call right and timed, and the verdict kept: fastrnn/verdict/proven-CAPABILITY.json is such a file.
prove() {
  FASTRNN_CACHE_DIR=$out "$python" -m fastrnn prove
}

# profile NAME KERNELS TIER: where the time of the first kernels of that name goes, in an LSTM of 512 units.
profile() {
  ncu --set full --launch-count 4 --kernel-name-base function --kernel-name "regex:$2" \
    "$python" -m pytest -q -m gpu -p no:cacheprovider "$gpu_tests" -k "real_sizes and $3-512"
}

# grid FILE SECONDS TIER ARGUMENTS... The tier is FASTRNN_CUDA_TIER; `measured` is what users get. A grid larger than its
# time is measured in a mixed order, so that what is measured stands for all of it.
grid() {
  local file=$1 seconds=$2 tier=$3
  shift 3
  FASTRNN_CUDA_TIER=$tier "$python" benchmarks/run.py --backend cuda --seconds-per-case 0.15 --shuffle \
    --stop-after $((seconds - 9)) --out "$out/$file.csv" "$@"
}

# bench NAME SECONDS TIER ARGUMENTS...
bench() {
  part "bench-$1" "$2" grid "bench-$1" "${@:2}"
}

tables() {
  "$python" benchmarks/summary.py "$out"/bench-*.csv
}

export -f machine build tests sanitize flashrnn torchrl barriers prove profile grid tables
export gpu_tests=tests/cuda/test_gpu.py

correctness() {
  part machine 20 machine # the first import of torch may have to come from a slow disk
  if ! part build 150 build; then
    tail -n 40 "$out/build.log"
    return
  fi
  local tier tool
  # A process each: one that hangs or faults says nothing of the others.
  for tier in step cta cluster-8 cluster-16 grid; do part "first-$tier" 25 tests "four_steps and $tier"; done
  # The kernels that are least unknown come first, and meanwhile a tool that slows everything down.
  part memcheck 100 sanitize memcheck &
  part tests-step 90 tests "not (cta or cluster or grid or four_steps)"
  wait
  for tool in racecheck initcheck synccheck; do part $tool 120 sanitize $tool & done
  for tier in cta cluster grid; do part tests-$tier 120 tests "$tier and not four_steps" & done
  gpu_tests=tests/cuda/test_gpu_wavefront.py part tests-wavefront 120 tests "test" &
  gpu_tests=tests/cuda/test_gpu_own_cells.py part tests-own 120 tests "test" &
  wait
}

speed() {
  local tier some="cell=LSTM,dtype=bfloat16,I=256,H=128|256|512|1024|2048,B=1|16|64|128"
  part barriers 20 barriers
  # Every tier where it can serve, on the same shapes: what the planner's table is filled from. Then what users get.
  for tier in step cluster grid measured; do bench "sizes-$tier" 26 $tier --grid sizes --filter "$some"; done
  for tier in step cta measured; do bench "small-$tier" 12 $tier --grid small; done
  bench cudnn-best-measured 20 measured --grid cudnn-best
  bench rl-measured 20 measured --grid rl
  bench packed-measured 20 measured --grid packed
  bench decode-measured 17 measured --grid decode
  bench long-measured 20 measured --grid long
  bench odd-measured 17 measured --grid odd
  bench own-measured 25 measured --grid own,norm,regularised,heads,slstm --device cuda
  if compgen -G 'wheels/flashrnn-*' >/dev/null; then
    part flashrnn 60 flashrnn
    find "$TORCH_EXTENSIONS_DIR" -name lock -delete # of a compilation that was cut off; waiting for it never ends
    bench long-flashrnn 20 measured --grid long --filter cell=LSTM,B=16 --opponent flashrnn
  fi
  if compgen -G 'wheels/torchrl-*' >/dev/null; then part torchrl 60 torchrl; fi
  part profile-step 30 profile step fused cluster # that test runs the step kernels to compare with
  part profile-cluster 30 profile cluster resident cluster
  part profile-grid 30 profile grid resident grid
  part tables 10 tables
}

proof() {
  part prove 530 prove # one that is cut off leaves a verdict on what it got to
}

case $command in
correctness | speed | proof) "$command" ;;
*) echo "$usage" >&2 && exit 2 ;;
esac
cat "$out/tables.log" 2>/dev/null
cat "$out/summary.txt"
! grep -qv 'exit   0' "$out/summary.txt"
