#!/usr/bin/env bash
# From nothing but Python to a trained network: installs, trains on handwritten digits, says what to try next.
#   bash scripts/quickstart.sh [--config.KEY=VALUE ...]
# WORKDIR chooses where the run goes. The same command again goes on with it, or prints its result.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env ""
workdir=${WORKDIR:-runs/quickstart}
"$VENV/bin/python" -m cnn_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
cat <<TEXT

What next?
  CIFAR-10:      $VENV/bin/python -m cnn_jax.main --config=configs/batchnorm.py --workdir=runs/batchnorm
  a small bite:  ... --config.data.train_examples=5000 --config.epochs=10
  your photos:   ... --config.data.name=folder --config.data.dir=DIR     (DIR/CLASS/*.jpg)
  the numbers:   $workdir/metrics.jsonl
TEXT
