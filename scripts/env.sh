# Sourced by the other scripts: a virtual environment in .venv with this project and its extras. A second call is quick.
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}

ensure_env() { # ensure_env EXTRAS, as in "" or "[dev]"
  local python=${PYTHON:-python3} stamp
  if [ ! -x "$VENV/bin/python" ]; then
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "Error: Python 3.11 to 3.13 is needed, and '$python' is not one: set PYTHON=/path/to/python3.12." >&2
      exit 1
    fi
    echo "Making a virtual environment in $VENV ..."
    "$python" -m venv "$VENV" || {
      echo "Error: Python's venv module is missing (Debian and Ubuntu: apt install python3-venv)." >&2
      exit 1
    }
  fi
  # The stamp says for which setup.cfg and which extras the environment was last completed.
  stamp="$VENV/.installed-$(cksum <setup.cfg | tr ' ' '-')$1"
  if [ ! -e "$stamp" ]; then
    echo "Installing cnn_jax$1 (a minute or two) ..."
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$1"
    touch "$stamp"
  fi
}
