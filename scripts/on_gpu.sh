#!/usr/bin/env bash
# Measures on a GPU everything that waits for one, most important first, and writes reports/gpu/*.json:
#   bash scripts/on_gpu.sh [--minutes=30] [--airbench=DIR] [--hiverge=DIR]
#   bash scripts/on_gpu.sh --rehearse     the same on a CPU, at tiny sizes
# The same command continues where it was stopped. `python scripts/on_gpu.py --help` explains the steps.
# It installs the project and the peers of the benchmark in .venv, which needs the package index. Without one, set
# ON_GPU_PYTHON to an interpreter that has JAX for CUDA and the requirements of cnn_jax, and TFDS_DATA_DIR to a folder
# that holds CIFAR-10: nothing is then installed or downloaded, and peers that are missing are left out and named.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "${ON_GPU_PYTHON:-}" ]; then
  exec "$ON_GPU_PYTHON" "$here/on_gpu.py" "$@"
fi
from=$PWD
source "$here/env.sh"
case " $* " in
  *" --rehearse "*) ensure_env "" ;;
  *) ensure_env "[gpu,bench]" ;;
esac
python=$(cd "$VENV" && pwd)/bin/python
case " $* " in
  *" --airbench="* | *" --hiverge="*) "$python" -m pip install --quiet torchvision || true ;; # which they import
esac
cd "$from"
exec "$python" "$here/on_gpu.py" "$@"
