#!/usr/bin/env bash
# The main job on simulated data, as anybody would type it. `make demo` calls this; an interrupted
# demo goes on where it was.
set -euo pipefail
out=${1:-runs/demo}
cd "$(dirname "$0")/../.."
say() { printf '\n== %s\n' "$*"; }

# Raw files first, packed afterwards: the path that people with files of their own take.
if [ ! -e "$out/packed/manifest.json" ]; then
  say "simulate DeepLenseSim Model II, as files"
  [ -d "$out/raw" ] || lensdist simulate --family model_ii --n-per-class 1500 --layout raw "$out/raw"
  say "pack"
  lensdist pack "$out/raw" "$out/packed" --pixel-scale 0.101 --psf-fwhm 0.16 --zero-point 24
fi

data=(data.path="$out/packed")
say "pretrain the masked autoencoder on unlabelled images"
lensdist train --config configs/demo/mae.yaml "${data[@]}" run.dir="$out/mae"
say "fine-tune the classifier from it, on few labels"
lensdist train --config configs/demo/finetune.yaml "${data[@]}" run.dir="$out/finetune" \
  encoder="$out/mae"
say "the same classifier from scratch, at the learning rate that suits it, to compare"
lensdist train --config configs/demo/finetune.yaml "${data[@]}" run.dir="$out/scratch" optim.lr=1e-3

say "evaluate on the test split"
for run in mae finetune scratch; do
  lensdist evaluate "$out/$run" --data "$out/packed"
done
say "results"
lensdist report "$out"/{finetune,scratch,mae} --out "$out" --title "lensdist demo" \
  --note "Simulated DeepLenseSim Model II (noiseless), 1,500 images per class, small networks: a demonstration in minutes, not a result." \
  --note "Fine-tuned on 30 labels per class, the last averaged weights: no other labels choose. The test split was looked at once."
