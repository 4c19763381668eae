"""Starts the web page: python -m cnn_jax.page --workdir=runs/batchnorm, or --model=model.jaxexport.

The page is served to this computer only, at http://127.0.0.1:8501. --address=0.0.0.0 opens it to the network: anybody
who can reach the computer can then upload pictures. It has no passwords and no encryption; put a proxy in front of it
for the internet. --workdir may be a folder of runs, of which visitors choose one.
"""

import os
import sys
from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

APP = Path(__file__).resolve().parents[1] / "app.py"

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run, or of several runs.")
_MODEL = flags.DEFINE_string("model", None, "File written by python -m cnn_jax.export, instead of a workdir.")
_SEED = flags.DEFINE_string("seed", None, "Of a run with several seeds: the index of one, or ensemble.")
_TRUST = flags.DEFINE_bool("trust", False, "Run the program of --model even if it does what no network needs.")
_ADDRESS = flags.DEFINE_string("address", "127.0.0.1", "Address to listen on; 0.0.0.0 for all networks.")
_PORT = flags.DEFINE_integer("port", 8501, "Port to listen on.", lower_bound=1, upper_bound=65535)


def main() -> None:
    """Checks the flags and runs the server until it is interrupted."""
    if bool(_WORKDIR.value) == bool(_MODEL.value):
        both = "not both" if _MODEL.value else "to choose a network"
        raise UserError(f"Give --workdir=DIR (a trained run) or --model=FILE (an exported one), {both}.")
    given = [
        f"--{name}={flag.value}"
        for name, flag in (("workdir", _WORKDIR), ("model", _MODEL), ("seed", _SEED))
        if flag.value
    ]
    path = Path(_WORKDIR.value or _MODEL.value or "").expanduser()
    if not (path.is_dir() if _WORKDIR.value else path.is_file()):
        raise UserError(f"There is no {'folder' if _WORKDIR.value else 'file'} {path}.")
    try:
        from streamlit.web import cli as streamlit
    except ImportError:
        raise UserError("The page needs streamlit: pip install 'cnn_jax[app]'.") from None
    options = [f"--server.address={_ADDRESS.value}", f"--server.port={_PORT.value}"]
    # No browser is opened where nobody sees it.
    if not sys.stdin or not sys.stdin.isatty() or not (sys.platform != "linux" or os.environ.get("DISPLAY")):
        options.append("--server.headless=true")
    trust = ["--trust"] * _TRUST.value
    streamlit.main(["run", str(APP), *options, "--", *given, *trust], standalone_mode=False)


if __name__ == "__main__":
    cli.run(main)
