#!/usr/bin/env bash
# What to do first on a machine with a GPU, in order of worth, in at most ten minutes.
#
#   tools/gpu_check.sh --build          where there is a compiler: makes the programs it takes along, in gpu_check.bin
#   tools/gpu_check.sh [PART ...]       on the machine with the GPU: all parts, or those named
#   tools/gpu_check.sh --list           names, seconds and what they do
#
# The second machine needs this repository, gpu_check.bin (at most 60 MB) and an NVIDIA driver: no cargo, no network.
# Each part is a process of its own with a time limit of its own, so that one that hangs or loses the device takes no
# other along. Logs, the alphabet as the device draws it, and summary.txt go to $OUT [./gpu_check]. Compiled kernels and
# models made up stay in $WORK [/tmp/aquatint-gpu-check] for another try. $BUDGET [570] bounds the seconds of all; $BIN is
# another folder for the programs, $PROFILE [release] cargo's profile for the two that are timed.
#
# Ends with 0 if no part failed, 1 if one did, 2 without a device or programs.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=${BIN:-$root/gpu_check.bin}
OUT=${OUT:-./gpu_check}
WORK=${WORK:-/tmp/aquatint-gpu-check}
BUDGET=${BUDGET:-570}
PROFILE=${PROFILE:-release}
DEVICE=cuda:0
# A part that ends so was skipped; the last line of its log says why.
SKIPPED=77
MOST_BYTES=60000000

# Name, seconds, and a function below with its arguments.
parts() {
    cat <<'END'
devices 30 devices
modules 150 cases modules::on_device::all_modules_load
probes 30 cases ops::device::probes
letters 60 draw_letters
linear_exact 60 cases ops::device::linear_exact ops::device::gated_exact
linear_quantized 60 cases ops::device::linear_quantized ops::device::epilogues
equal_codes 60 cases ops::device::codes_give_the_cpus_floats_to_the_bit
conv 60 cases ops::device::conv ops::device::conv_sized ops::device::resample
attention 60 cases ops::device::attention ops::device::attention_causal ops::device::attention_per_condition
grids 60 cases ops::device::rounded ops::device::attention_on_grid
quantize 60 cases ops::device::quantize ops::device::turned ops::device::vector_quantize
tokens 60 cases ops::device::rotary ops::device::tokens ops::device::layer_norm_parts ops::device::layer_norm_shifted
norms 60 cases ops::device::layer_norm ops::device::group_norm ops::device::group_norm_modulated
encoders 60 cases ops::device::attention_masked ops::device::rms_norm ops::device::products ops::device::relative_bias ops::device::wide_stream ops::device::tables_of_modulations
videos 60 cases ops::device::attention_within_reach ops::device::positions
linear_float 60 cases ops::device::linear_float ops::device::gated_float
elementwise 60 cases ops::device::elementwise ops::device::prompt ops::device::activations
steps 60 cases pipeline::on_device::steps_replay pipeline::on_device::batch_invariance
against_cpu 90 cases pipeline::on_device::letters
tiny_pipeline 60 cases pipeline::on_device::prompts_to_pictures
bench_letters 60 bench
bench_dit 200 bench_of dit-xl-2-512
memory 30 cases pipeline::on_device::memory_is_near_what_was_announced
bench_sd15 250 bench_of sd15
memcheck 120 memcheck ops::device::linear_quantized ops::device::conv ops::device::attention
END
}

# The driver's own list, and ours.
devices() {
    ldconfig -p 2>/dev/null | grep libcuda
    if command -v nvidia-smi >/dev/null; then nvidia-smi; else echo "no nvidia-smi"; fi
    "$BIN/aquatint" --list-devices | tee "$WORK/devices"
    grep -q "^$DEVICE " "$WORK/devices" && ! grep -q "^$DEVICE .*unfit" "$WORK/devices"
}

# Tests by name, in one process, with what they print. A kernel that faults takes the device from all that come after it
# in the process, so after a failure each is tried alone.
cases() {
    if together "$@"; then return; fi
    local name
    if [ $# -gt 1 ]; then
        for name in "$@"; do
            if together "$name"; then echo "alone: $name ok"; else echo "alone: $name failed"; fi
        done
    fi
    return 1
}

together() {
    REQUIRE_CUDA=1 "$BIN/cuda-tests" --exact "$@" --nocapture --test-threads=1 2>&1 | tee "$WORK/cases"
    # A name that no test has runs nothing and succeeds.
    grep -q "^test result: ok. $# passed" "$WORK/cases" || { echo "not all of $# tests ran and passed"; return 1; }
}

draw_letters() {
    "$BIN/aquatint" run --device "$DEVICE" -o "$OUT/letters.png"
}

bench() {
    "$BIN/aquatint" bench --device "$DEVICE" "$@"
}

# A published model of true size with random weights.
bench_of() {
    local model=$WORK/$1 packed=$WORK/$1.aqt
    if [ ! -e "$packed" ]; then
        rm -rf "$model"
        "$BIN/packer" synth "$1" -o "$model" && "$BIN/packer" "$model" --q-config w4a8 --vae-q-config w8a8 -o "$packed" || return 1
        rm -rf "$model"
    fi
    "$BIN/aquatint" info --device "$DEVICE" "$packed"
    bench "$packed"
}

memcheck() {
    command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer"; return "$SKIPPED"; }
    REQUIRE_CUDA=1 compute-sanitizer --tool memcheck --error-exitcode 1 "$BIN/cuda-tests" --exact "$@" --test-threads=1
}

# Builds and strips. The tests as cargo builds them by default: their oracles are fast enough, and nothing is built twice.
build() {
    cd "$root" || return 1
    mkdir -p "$BIN"
    cargo build --profile "$PROFILE" --bin aquatint --bin packer || return 1
    local target=${CARGO_TARGET_DIR:-target}/$PROFILE tests
    [ "$PROFILE" != dev ] || target=${CARGO_TARGET_DIR:-target}/debug
    tests=$(cargo test -p aquatint --test cuda --no-run --message-format=json |
        sed -n 's/.*"name":"cuda".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [ -n "$tests" ] || { echo "cargo names no test program"; return 1; }
    strip -o "$BIN/cuda-tests" "$tests" || return 1
    strip -o "$BIN/aquatint" "$target/aquatint" && strip -o "$BIN/packer" "$target/packer" || return 1
    local bytes
    bytes=$(cat "$BIN"/* | wc -c)
    echo "$BIN: $bytes bytes"
    [ "$bytes" -le "$MOST_BYTES" ] || { echo "more than $MOST_BYTES"; return 1; }
}

# Runs a part and prints how it ended; its output goes to a file.
check() {
    local name=$1 limit=$2 left=$((BUDGET - SECONDS)) begin=$SECONDS status reason
    if [ "$left" -lt 5 ]; then echo "$name skipped: no time left"; return; fi
    [ "$limit" -le "$left" ] || limit=$left
    timeout -k 5 "$limit" bash "${BASH_SOURCE[0]}" --part "$name" >"$OUT/$name.log" 2>&1
    status=$?
    # What a test says when it fails, else the last line.
    reason=$(grep -A 1 'panicked at' "$OUT/$name.log" || grep -v '^ *$' "$OUT/$name.log")
    reason=$(tail -n 1 <<<"$reason" | cut -c 1-200)
    case $status in
        0) echo "$name ok in $((SECONDS - begin)) s" ;;
        "$SKIPPED") echo "$name skipped: $reason" ;;
        124 | 137) echo "$name failed: not done in $limit s; last line: $reason" ;;
        *) echo "$name failed with $status: $reason" ;;
    esac
}

check_all() {
    local name limit wanted=" $* " without=""
    mkdir -p "$OUT" "$WORK" && : >"$OUT/summary.txt" || exit 2
    for program in aquatint packer cuda-tests; do
        [ -x "$BIN/$program" ] || { echo "$BIN/$program is missing: tools/gpu_check.sh --build makes it" | tee "$OUT/summary.txt"; exit 2; }
    done
    while read -r name limit _; do
        if [ "$name" != devices ] && [ "$wanted" != "  " ] && [[ $wanted != *" $name "* ]]; then continue; fi
        if [ -n "$without" ]; then echo "$name skipped: no device"; else check "$name" "$limit"; fi | tee -a "$OUT/summary.txt"
        if [ "$name" = devices ] && ! grep -q "^devices ok" "$OUT/summary.txt"; then without=1; fi
    done < <(parts)
    local ok failed skipped
    ok=$(grep -c '^[a-z0-9_]* ok' "$OUT/summary.txt")
    failed=$(grep -c '^[a-z0-9_]* failed' "$OUT/summary.txt")
    skipped=$(grep -c '^[a-z0-9_]* skipped' "$OUT/summary.txt")
    echo "$ok ok, $failed failed, $skipped skipped in $SECONDS s; logs in $OUT" | tee -a "$OUT/summary.txt"
    [ -z "$without" ] || exit 2
    [ "$failed" -eq 0 ]
}

case ${1:-} in
    --list) parts ;;
    --build) build ;;
    --part)
        line=$(parts | grep "^$2 ") || exit 1
        # Words of a line are a function and names without spaces.
        read -r -a words <<<"$line"
        "${words[@]:2}"
        ;;
    -*) echo "expected --build, --list or names of parts, got $1" >&2; exit 2 ;;
    *)
        for name in "$@"; do
            parts | grep -q "^$name " || { echo "expected names of parts (--list), got $name" >&2; exit 2; }
        done
        export BIN OUT WORK BUDGET AQUATINT_ROOT=$root CUDA_CACHE_PATH=$WORK/kernels CUDA_CACHE_DISABLE=0
        export CUDA_CACHE_MAXSIZE=1073741824
        check_all "$@"
        ;;
esac
