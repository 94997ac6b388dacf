#!/usr/bin/env bash
# Time training cycles at true size on one GPU, at most 8 minutes; no weights or data are needed.
#   benchmarks/gpu.sh [FOLDER] [key=value ...]      rows in FOLDER/bench/runs.jsonl and FOLDER/memory/runs.jsonl
# With DRY=1 every command composes its config and runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${OUT:-experiments}}
shift || true
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD/src:$PWD
failed=0

measure() { # SECONDS ARGUMENTS...: one row; a measurement that fails or takes too long leaves the others alone
    local limit=$1
    shift
    echo "== $*"
    if [ -n "${DRY:-}" ]; then
        "$python" -c 'import sys; from benchmarks.cycle import *; own, c = read_arguments(sys.argv[1:], SETTINGS); require_plain(c, own["arms"])' "$@"
    else
        timeout "$limit" "$python" -m benchmarks.cycle "$@" || { echo "failed: $*"; failed=1; }
    fi
}

unet=(experiment=cifar10_fgm "experiments=$folder" cycles=10 repetitions=3 "$@")
sd3=(experiment=sd3_fgm "experiments=$folder" network.random_init=true cycles=2 repetitions=2 arms=ours optimizer.kernel=fused "$@")

measure 60 "${unet[@]}" trainer.precision=32-true arms=ours
measure 60 "${unet[@]}" trainer.precision=bf16-mixed
measure 60 "${unet[@]}" trainer.precision=bf16-mixed arms=ours optimizer.kernel=fused
measure 100 "${unet[@]}" trainer.precision=bf16-mixed arms=ours training.compile=true
measure 100 "${sd3[@]}" training.batch_size=4
measure 100 "${sd3[@]}" training.batch_size=4 training.compile=true
exit $failed
