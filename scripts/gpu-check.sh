#!/bin/bash
# Measures and checks on a GPU, in under 12 minutes, what no CPU can show. Build first: dotnet fsi build.fsx -t Build, and
# the project tests/LoRASub.FSharp.Benchmarks.
#
#     scripts/gpu-check.sh OUT [CIFAR]
#
# OUT gets summary.txt, a log for each part, and gpu.json, which `-t Bench gpu` files. CIFAR is a folder of CIFAR-100's
# binary files, such as a cut of it; without one that part is left out. LORASUB_LIBTORCH names the LibTorch (an installed
# PyTorch's otherwise), PEER a Python program that times the same step in PyTorch. DEVICE=cpu tries the script itself, with
# EPOCHS, more OPTIONS of the runs and a memory LIMIT.
# PARTS names the parts to do, of doctor, repeat, ten, bench, peer and batch. Ends with 1 if two runs differ that must be equal.
set -u
cd "$(dirname "$0")/.."
OUT=${1:?usage: scripts/gpu-check.sh OUT [CIFAR]}
OUT=$(mkdir -p "$OUT" && cd "$OUT" && pwd) || exit 2
CIFAR=${2:-}
DEVICE=${DEVICE:-cuda:0}
PEER=${PEER:-}
WORK=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$WORK"' EXIT
failed=0
wants() { [[ " ${PARTS:-doctor repeat ten bench peer batch} " == *" $1 "* ]]; }

if [ "$DEVICE" != cpu ] && [ -z "${LORASUB_LIBTORCH:-}" ]; then
    LORASUB_LIBTORCH=$(python3 -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
    export LORASUB_LIBTORCH
fi

PROGRAM="dotnet src/LoRASub.FSharp.Cli/bin/Release/net10.0/lorasub.dll"
COMMON="--tasks 2 --epochs ${EPOCHS:-20} ${OPTIONS:-}"
say() { echo "[$SECONDS s] $*" | tee -a "$OUT/summary.txt"; }

# part NAME SECONDS COMMAND...: its output goes to NAME.txt
part() {
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout "$limit" "$@" >>"$OUT/$name.txt" 2>&1
    local code=$?
    [ $code = 0 ] || say "$name: exit code $code after $((SECONDS - began)) s, see $name.txt"
    return $code
}

# run NAME OPTIONS...: a run of two tasks in WORK/NAME
run() {
    local name=$1
    shift
    part runs 120 $PROGRAM run $COMMON --device "$DEVICE" --out "$WORK/$name" "$@"
}

# equal NAME A B: whether learner, scores and drift of two runs are the same bytes
equal() {
    local different=""
    for file in learner.safetensors learner.json summary.json classes.json drift.json; do
        cmp -s "$WORK/$2/$file" "$WORK/$3/$file" || different="$different $file"
    done
    if [ -z "$different" ]; then say "$1: equal files"; return 0; fi
    say "$1: DIFFERENT:$different"
    return 1
}

: >"$OUT/summary.txt"

if wants doctor; then
    part doctor 90 $PROGRAM doctor
    grep -E '^(GPU|driver|cuda:|LibTorch|recommended)' "$OUT/doctor.txt" | tee -a "$OUT/summary.txt"
fi

# ---- repeatable results: two runs, a run that is killed and resumed, and one of two seeds at once
if wants repeat; then
    for precision in float32 bfloat16; do
        run "$precision-1" --seed 1 --precision $precision --deterministic
        run "$precision-2" --seed 1 --precision $precision --deterministic
        equal "two --deterministic runs, $precision" "$precision-1" "$precision-2" || failed=1
    done

    run usual-1 --seed 1
    run usual-2 --seed 1
    equal "two runs without it" usual-1 usual-2
    grep -h '"repeatable"\|"peakDeviceBytes"' "$WORK"/{usual,float32,bfloat16}-1/resources.json >>"$OUT/summary.txt"

    $PROGRAM run $COMMON --device "$DEVICE" --seed 1 --deterministic --checkpoint-minutes 0.02 \
        --out "$WORK/stopped" >"$WORK/stopped.txt" 2>&1 &
    child=$!
    for _ in $(seq 1200); do
        grep -q 'task 2/2: epoch' "$WORK/stopped.txt" && break
        sleep 0.1
    done
    kill -KILL $child && wait $child 2>/dev/null
    say "killed after: $(tail -1 "$WORK/stopped.txt")"
    part runs 120 $PROGRAM run --resume "$WORK/stopped"
    equal "a killed and resumed run" stopped float32-1 || failed=1

    # not `run`, whose --device would be in the way
    part runs 180 $PROGRAM run $COMMON --devices "$DEVICE,$DEVICE" --seeds 1,2 --deterministic --out "$WORK/seeds"
    equal "seed 1 of two at once on one device" seeds/seed-1 float32-1 || failed=1
fi

# ---- ten tasks in each precision: accuracy, seconds of each phase, memory and use of the device
if wants ten && [ -n "$CIFAR" ]; then
    for precision in float32 tf32 bfloat16; do
        watch=""
        if command -v nvidia-smi >/dev/null; then
            nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -l 1 >"$WORK/use.txt" 2>/dev/null &
            watch=$!
        fi
        part runs 150 $PROGRAM run --device "$DEVICE" \
            --data cifar100 --data-path "$CIFAR" --tasks 10 --epochs 5 --precision $precision --out "$WORK/ten-$precision"
        if [ -n "$watch" ]; then
            kill "$watch"
            say "ten tasks, $precision: GPU use, median of seconds: $(sort -n "$WORK/use.txt" | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }') %"
        fi
        {
            echo "ten tasks, $precision"
            grep -E '"(last|average)"' "$WORK/ten-$precision/summary.json" | head -2
            grep -A 5 '"phaseSeconds"' "$WORK/ten-$precision/resources.json"
            grep '"peakDeviceBytes"' "$WORK/ten-$precision/resources.json"
        } >>"$OUT/summary.txt"
    done
fi

# ---- speed: against the bound, and against PyTorch
if wants bench && [ "$DEVICE" != cpu ]; then
    part bench 210 dotnet tests/LoRASub.FSharp.Benchmarks/bin/Release/net10.0/LoRASub.FSharp.Benchmarks.dll gpu --rounds 5
    cp docs/performance/gpu.json "$OUT/" && sed -n '/id="gpu"/,$p' docs/performance.md >>"$OUT/summary.txt"
fi

if wants peer && [ -n "$PEER" ]; then
    for what in vitb,bf16,0 vitb,bf16,1 vitb,f32,0 vitb,tf32,0 micro,f32,0 micro,bf16,0 micro,bf16,1; do
        part peer 60 python3 "$PEER" $what
    done
    cat "$OUT/peer.txt" >>"$OUT/summary.txt"
fi

if wants batch; then
    part batch 60 $PROGRAM run --device "$DEVICE" --largest-batch ${LIMIT:-}
    tail -1 "$OUT/batch.txt" | tee -a "$OUT/summary.txt"
fi

say "done"
exit $failed
