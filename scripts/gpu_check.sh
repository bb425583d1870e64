#!/usr/bin/env bash
# What a machine with a GPU has to show: the tests that need one, then the benchmark of an 8B model
# with random weights. Nothing is installed or fetched; it takes less than ten minutes.
#
#   scripts/gpu_check.sh [ARGUMENT ...]     # of scripts/benchmark.py
#
# PYTHON needs torch, transformers, accelerate, pandas and pyarrow. What else is imported may lie in
# build/gpu-packages, which `make gpu-packages` fills on a machine with a network. The benchmark's
# table goes to the folder OUT, by default results. The reference is left out: one text at a time it
# takes longer than there is.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/build/gpu-packages${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

if ! problem=$("$python" -c 'import torch, transformers, accelerate, pandas, pyarrow, hydra, pytest' 2>&1); then
    echo "gpu_check: ${problem##*$'\n'}: run \`make gpu-packages\` where there is a network," \
        "and bring build/gpu-packages along" >&2
    exit 2
fi
code=0
timeout 220 "$python" -m pytest -m gpu -q -p no:cacheprovider tests/gpu --durations=5 || code=$?
timeout 360 "$python" scripts/benchmark.py --out "${OUT:-results}/gpu-benchmark.parquet" \
    --reference-edits 0 --growth-steps 20 \
    model=llama3-8b-random edits.batch_size=100 edits.total=100 "$@" || code=$?
exit $code
