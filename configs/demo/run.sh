#!/usr/bin/env bash
# The main job on simulated data, as anybody would type it. `make demo` calls this; an interrupted
# demo goes on where it was.
set -euo pipefail
out=${1:-runs/demo}
cd "$(dirname "$0")/../.."
say() { printf '\n== %s\n' "$*"; }

# Raw files first, packed afterwards: the path that people with files of their own take.
if [ ! -e "$out/packed/manifest.json" ]; then
  say "simulate DeepLenseSim Model II with Euclid's noise, as files"
  [ -d "$out/raw" ] || lensdist simulate --family model_ii --noise euclid --n-per-class 1500 \
    --layout raw "$out/raw"
  say "pack"
  lensdist pack "$out/raw" "$out/packed" --pixel-scale 0.101 --psf-fwhm 0.16 --zero-point 24
fi

data=(data.path="$out/packed")
say "pretrain the masked autoencoder on unlabelled images"
lensdist train --config configs/demo/mae.yaml "${data[@]}" run.dir="$out/mae"
# Each seed draws other labelled images, so that the interval of the comparison covers the draw. With
# one seed it covers test images alone, and called a difference sure that two more seeds did not.
runs=()
for seed in 0 1 2; do
  also=("${data[@]}" seed="$seed") name=${seed#0}
  say "fine-tune the classifier from it, on few labels (seed $seed of 0 to 2)"
  lensdist train --config configs/demo/finetune.yaml "${also[@]}" \
    run.dir="$out/finetune${name:+-$name}" encoder="$out/mae"
  say "the same classifier from scratch, at the learning rate that suits it, to compare"
  lensdist train --config configs/demo/finetune.yaml "${also[@]}" \
    run.dir="$out/scratch${name:+-$name}" optim.lr=1e-3
  runs+=("$out/finetune${name:+-$name}" "$out/scratch${name:+-$name}")
done

say "evaluate on the test split"
for run in "${runs[@]}" "$out/mae"; do
  lensdist evaluate "$run" --data "$out/packed"
done
say "results"
lensdist report "${runs[@]}" "$out/mae" --out "$out" --title "lensdist demo" \
  --note "Simulated DeepLenseSim Model II with Euclid's noise, 1,500 images per class, small networks: a demonstration in minutes, not a result." \
  --note "Fine-tuned on 30 labels per class, the last averaged weights: no other labels choose. Each seed draws other labels. The test split was looked at once."
