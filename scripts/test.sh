#!/usr/bin/env bash
# Installs the test extras and runs the tests: bash scripts/test.sh [--python=3.13] [pytest's arguments]
# --python=VERSION takes that interpreter and the newest packages that setup.cfg allows, in an environment of its own,
# .venv-VERSION; remove that folder to get newer ones.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [[ ${1:-} == --python=* ]]; then
  version=${1#--python=}
  shift
  VENV=.venv-$version CONSTRAINTS=
  PYTHON=$(find_python "$version") || {
    echo "Error: there is no Python $version on PATH or in pyenv: install it, or leave out --python." >&2
    exit 1
  }
fi
ensure_env "[dev]"
"$VENV/bin/python" -m pytest "$@"
