#!/usr/bin/env bash
# What is still to be measured on a GPU, in one call of some five minutes on an H200: the attention of
# a whole head against PyTorch's, alone and in the decoder, and what was not yet run on CUDA.
#
#     bash benchmarks/on_gpu.sh     # results in runs/gpu, and where OUT is set in $OUT/gpu.tgz, too
#
# The lent machine reaches no registry and lacks some packages. Make .site.txz of them here, 3.5 MB:
#
#     pip install --no-deps --no-compile --target runs/site diffusers open_clip_torch ftfy \
#         'wcwidth<0.3' 'importlib_metadata<9'
#     tar -C runs/site -cJf .site.txz .
#
# and give the tool `run` these: command 'bash benchmarks/on_gpu.sh', carry ['.site.txz'], timeout_s
# 540. The tree must stay below 64 MiB with it; it has 58. If it has grown beyond that, delete
# benchmarks/results/*.jsonl and docs/*.png before the call, which nothing here reads, and take them
# back with `git checkout benchmarks/results docs` after it.
#
# Where `head` wins: its cut into attention.TILE, `norm_attention` for `attention` in FusedDecoder,
# the files into benchmarks/results, and what they say into docs/decoding.md and cuda_checks.md.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=runs/gpu
mkdir -p $results
export PYTHONUNBUFFERED=1

if [ -f .site.txz ]; then
  site=$(mktemp -d)
  tar -C "$site" -xJf .site.txz
  export PYTHONPATH=$site
fi
if ! missing=$(python3 -c 'import ftfy, open_clip, triton; from diffusers import AutoencoderKL' 2>&1)
then
  printf '%s: make .site.txz as the head of benchmarks/on_gpu.sh says, and carry it.\n' \
    "${missing##*$'\n'}" >&2
  exit 2
fi

failed=0  # whether any step has

# step NAME COMMAND...: its output goes to NAME.log. What there is by then comes back as one file, as
# a tool that is cut off brings back what lies in $OUT, and eight files at most.
step() {
  local log=$results/$1.log
  if ! "${@:2}" >"$log" 2>&1; then
    printf '%s failed:\n' "$1"
    failed=1
  fi
  tail -n 5 "$log"
  if [ -n "${OUT:-}" ]; then tar -C $results -czf "$OUT/gpu.tgz" .; fi
}

for model in d18-d28 d12-d12; do
  name=attention_throughput-${model%-d12}
  step $name python3 -m benchmarks.attention_throughput --model $model --seconds 0.05 \
    -o $results --name $name
done

# The fastest cut of the kernel whose results are right, as QUERIES WARPS STAGES.
tile=$(python3 - $results/attention_throughput-d18-d28.json <<'PY'
import json, re, sys
rows = json.load(open(sys.argv[1]))["variants"]
right = [row for row in rows if row.get("error", 1) < 1e-2]  # PyTorch's have 3e-3
heads = [row for row in right if row["variant"].startswith("head")]
if heads:
    print(*re.findall(r"\d+", min(heads, key=lambda row: row["microseconds"])["variant"]))
PY
)
tile=${tile:-64 4 2}
printf 'tile %s\n' "$tile"

usual="--batch 64 --runs 1 --seconds 0.3 --residual bfloat16 --vae bfloat16"
usual="$usual --engines eager kernels attention --tile $tile"
for model in d18-d28 d12-d12; do
  name=decoder_throughput-${model%-d12}
  plain=64
  if [ $model = d18-d28 ]; then plain=16; fi
  step $name python3 -m benchmarks.decoder_throughput --model $model --plain-batch $plain $usual \
    -o $results --name $name
done

step memcheck timeout 120 compute-sanitizer --tool memcheck \
  python3 -m tests.decoding.under_sanitizer kernels
new=tests/decoding/test_attention.py
step tests-attention timeout 180 python3 -m pytest -v --durations=10 $new
step tests timeout 180 python3 -m pytest -v --durations=10 tests/decoding --ignore=$new
exit $failed
