#!/usr/bin/env bash
# Train and score on Omniglot: Prototypical Networks in four settings, MAML and FOMAML in one.
# Usage: benchmarks/omniglot.sh DATA_DIR RUNS_DIR. The figures are in benchmarks/results/omniglot.md.
set -euo pipefail
data=$1
runs=$2

train() {
  local start=$SECONDS
  tfmeta train omniglot --data-dir "$data" --seed 0 "$@"
  echo "trained in $((SECONDS - start)) s"
}

train --preset vinyals_final --algorithm prototypical --ways 60 --shots 1 --queries 5 \
  --steps 200 --epochs 22 --learning-rate 2e-3 --learning-rate-halving 700 --output "$runs/prototypical"
for ways in 5 20; do
  for shots in 1 5; do
    tfmeta evaluate "$runs/prototypical" --ways $ways --shots $shots --queries 15 --episodes 1000
  done
done

gradient=(--downsample stride --ways 5 --shots 1 --queries 5 --inner-learning-rate 0.4
  --evaluation-steps 3 --meta-batch-size 16 --steps 300 --learning-rate 3e-3)
train --algorithm maml "${gradient[@]}" --epochs 25 --learning-rate-halving 2000 --output "$runs/maml"
train --algorithm fomaml "${gradient[@]}" --epochs 40 --learning-rate-halving 3000 --output "$runs/fomaml"
for algorithm in maml fomaml; do
  tfmeta evaluate "$runs/$algorithm" --ways 5 --shots 1 --queries 15 --episodes 1000
done
