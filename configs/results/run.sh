#!/usr/bin/env bash
# The full-size table: `reference` and `best` on 30,000 simulated images per class, a GPU's job.
# `make results-gpu` calls this. It stops by itself after LIMIT seconds (for machines that are lent
# for minutes), saves, and leaves with 75: the same command goes on. The common task's `reference`
# starts from ImageNet's weights; INIT=random where they cannot be had. COMMON, SR: flags of the
# benchmarks of the common task and of super-resolution.
#   run.sh OUT [key=value …]     settings for all runs; N images per class, DEVICE to simulate on
set -euo pipefail
out=${1:-runs/results}
shift || true
cd "$(dirname "$0")/../.."
limit=${LIMIT:-570} n=${N:-30000}
device=${DEVICE:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}

bounded() {
  local left=$((limit - SECONDS)) code=0
  ((left > 5)) || { echo "time is up: run the same command again"; exit 75; }
  # TERM lets a run save; what has not left a minute later is lost only to its last checkpoint.
  timeout -k 60 -s TERM "$left" "$@" || code=$?
  case $code in
    0) ;;
    75 | 124) echo "time is up: run the same command again"; exit 75 ;;
    *) exit "$code" ;;
  esac
}

for noise in native euclid; do
  set_=$out/data-$noise
  [ -e "$set_/manifest.json" ] ||
    bounded lensdist simulate --family model_ii --noise "$noise" --n-per-class "$n" --device "$device" "$set_"
  for preset in reference best; do
    mae=$out/$noise-mae-$preset finetune=$out/$noise-finetune-$preset
    bounded lensdist train --config "configs/mae/$preset.yaml" data.path="$set_" run.dir="$mae" "$@"
    bounded lensdist train --config "configs/finetune/$preset.yaml" data.path="$set_" \
      run.dir="$finetune" encoder="$mae" "$@"
    for run in "$mae" "$finetune"; do
      [ -e "$run/eval/test.json" ] || bounded lensdist evaluate "$run" --data "$set_"
    done
  done
done
# shellcheck disable=SC2086  # COMMON holds words
bounded lensdist bench common --size full --out "$out/common" ${COMMON:-} "$@" ${INIT:+init="$INIT"}
# shellcheck disable=SC2086
bounded lensdist bench super-resolution --size full --out "$out/super-resolution" ${SR:-} "$@"
lensdist report "$out"/{native,euclid}-finetune-{reference,best} "$out"/{native,euclid}-mae-{reference,best} \
  --out "$out" --title "Full labels" \
  --note "Simulated DeepLenseSim Model II, $n images per class; one seed." \
  --note "Validation chose the weights; the test split was looked at once."
