#!/usr/bin/env bash
# What is still to be measured on a GPU, in one call of some four minutes on an H200: the attention of
# a whole head against PyTorch's, alone and in the decoder, and what was not yet run on CUDA.
#
#     bash benchmarks/on_gpu.sh [FOLDER]     # the results go to FOLDER, or $OUT, or runs/gpu
#
# Where `head` wins: its cut into attention.TILE, `norm_attention` for `attention` in FusedDecoder,
# the files into benchmarks/results, and what they say into docs/decoding.md and cuda_checks.md.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out"

for model in d18-d28 d12-d12; do
  name=attention_throughput-${model%-d12}
  python3 -m benchmarks.attention_throughput --model $model --seconds 0.05 -o "$out" --name $name
done

# The fastest cut of the kernel, as QUERIES WARPS STAGES.
tile=$(python3 - "$out/attention_throughput-d18-d28.json" <<'PY'
import json, re, sys
rows = json.load(open(sys.argv[1]))["variants"]
heads = [row for row in rows if row["variant"].startswith("head") and "refused" not in row]
best = min(heads, key=lambda row: row["microseconds"])["variant"] if heads else "64 4 2"
print(*re.findall(r"\d+", best))
PY
)
printf 'tile %s\n' "$tile"

usual="--batch 64 --runs 1 --seconds 0.3 --residual bfloat16 --vae bfloat16"
usual="$usual --engines eager kernels attention --tile $tile"
python3 -m benchmarks.decoder_throughput --model d18-d28 --plain-batch 16 $usual -o "$out" \
  --name decoder_throughput-d18-d28
python3 -m benchmarks.decoder_throughput --model d12-d12 $usual -o "$out" --name decoder_throughput-d12

timeout 120 compute-sanitizer --tool memcheck python3 -m tests.decoding.under_sanitizer kernels \
  >"$out/memcheck.log" 2>&1
tail -n 3 "$out/memcheck.log"
timeout 240 python3 -m pytest -q tests/decoding 2>&1 | tee "$out/tests.log" | tail -n 5
