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
  how good is it?   $VENV/bin/python -m cnn_jax.evaluate --workdir=$workdir --report=$workdir/report
  CIFAR-10:         $VENV/bin/python -m cnn_jax.main --config=configs/batchnorm.py --workdir=runs/batchnorm
                    (a small bite of it: --config.data.train_examples=5000 --config.epochs=10)
  your photographs: $VENV/bin/python -m cnn_jax.main --config=configs/batchnorm.py --workdir=runs/mine \\
                      --config.data.name=folder --config.data.dir=DIR     with DIR/CLASS/*.jpg
  ask it:           $VENV/bin/python -m cnn_jax.predict --workdir=runs/mine IMAGE...
  the web page:     $VENV/bin/python -m pip install -e '.[app]' && \\
                      $VENV/bin/streamlit run cnn_jax/app.py -- --workdir=$workdir
TEXT
