"""The command `python -m cnn_jax.main` by another name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cnn_jax.main", run_name="__main__", alter_sys=True)
