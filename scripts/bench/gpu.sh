#!/usr/bin/env bash
# What a GPU makes of this project: is it right, how fast does it train, what waits for what; one Markdown file. Meant for ten minutes on
# a data-centre GPU, which is not measured; on two CPU cores, reduced, it takes one.
#
#   scripts/bench/gpu.sh [gpu.md]   on the available GPUs; on the CPU, reduced, without any
#   PYTHON=/path/to/python scripts/bench/gpu.sh   another Python than .venv/bin/python
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-gpu.md}
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
bench=scripts/bench
gpus=$("$python" -c "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)") || exit 1
failed=0

section() { # title, command: its output as it is; a failure is written and counted, and the others go on
    printf '\n## %s\n\n`%s`\n\n' "$1" "${*:2}" | tee -a "$out"
    "${@:2}" 2>&1 | tee -a "$out"
    local code=${PIPESTATUS[0]}
    if [ "$code" != 0 ]; then
        failed=$((failed + 1))
        printf '\n**failed, exit code %s**\n' "$code" | tee -a "$out"
    fi
}

printf '# gan_uad on this machine\n\n%s GPUs\n' "$gpus" | tee "$out"
if [ "$gpus" -gt 0 ]; then
    section 'Correctness and training' "$python" $bench/gpu.py --device cuda
    section 'Input' "$python" $bench/input_pipeline.py
    section 'Inception features' "$python" $bench/inception_features.py --device cuda --rounds 3
    section 'Search for the closest image' "$python" $bench/projection.py --device cuda --perceptual efficientnet_lite0 --steps 20
    for ((n = 1; n <= gpus; n *= 2)); do
        section "Scaling: $n GPUs" "$python" -m torch.distributed.run --standalone --nproc-per-node="$n" $bench/processes_step.py --preset stylegan2_e_64 --device cuda
    done
    if [ -n "${GAN_UAD_DATA:-}" ] && "$python" -c "import sys; from gan_uad.features import weights; sys.exit(weights.here(weights.entry('inception')) is None)"; then
        section 'FID of the shipped generator' "$python" -m gan_uad fid pcam_stylegan2_64_small --real "$GAN_UAD_DATA/pcam.zip" --features inception --device cuda --out "$(mktemp -d)"
    fi
else
    section 'Correctness and training' "$python" $bench/gpu.py --device cpu --reduced --steps 2
    section 'Input' "$python" $bench/input_pipeline.py --sides 64 --steps 8
    section 'Inception features' "$python" $bench/inception_features.py --device cpu --rounds 1 --batch 4 --images 0
    section 'Search for the closest image' "$python" $bench/projection.py --device cpu --preset stylegan2_64_small --perceptual efficientnet_lite0 --steps 2 --rounds 1
    section 'Scaling: 2 processes' "$python" -m torch.distributed.run --standalone --nproc-per-node=2 $bench/processes_step.py --steps 2
fi
printf '\n%s sections failed\n' "$failed" | tee -a "$out"
[ "$failed" = 0 ]
