#!/usr/bin/env bash
# Installs the test extras and runs the tests: bash scripts/test.sh [pytest's arguments]
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "[dev]"
"$VENV/bin/python" -m pytest "$@"
