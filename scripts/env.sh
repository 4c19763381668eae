# Sourced by the other scripts: a virtual environment in .venv with this project and its extras. A second call is quick.
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the folder. CONSTRAINTS names a file of exact versions; empty for
# the newest ones that setup.cfg allows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
CONSTRAINTS=${CONSTRAINTS-constraints.txt}

find_python() { # find_python 3.13 prints the path of that interpreter: on PATH, or one of pyenv's; fails if there is none
  local python
  for python in "python$1" "$(pyenv prefix "$1" 2>/dev/null || true)/bin/python"; do
    "$python" -c "import sys; '%d.%d' % sys.version_info[:2] == '$1' or sys.exit(1); print(sys.executable)" 2>/dev/null &&
      return
  done
  return 1
}

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
  # The stamp says for which requirements and which extras the environment was last completed.
  stamp="$VENV/.installed-$(cat setup.cfg ${CONSTRAINTS:+"$CONSTRAINTS"} | cksum | tr ' ' '-')$1"
  if [ ! -e "$stamp" ]; then
    echo "Installing cnn_jax$1 (a minute or two) ..."
    if [ -n "$CONSTRAINTS" ] && ! install "$1" --constraint "$CONSTRAINTS"; then
      echo "The versions in $CONSTRAINTS cannot be installed here: installing the newest ones instead." >&2
      CONSTRAINTS=
    fi
    [ -n "$CONSTRAINTS" ] || install "$1"
    touch "$stamp"
  fi
}

install() { # install EXTRAS [pip's options]
  # Compiling every module of every package takes half of the time; Python compiles what it imports.
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "${@:2}" --editable ".$1"
}
