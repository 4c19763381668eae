"""Runs `python -m cnn_jax.main`, and sends itself a signal when the chunk that ends at a step has been trained.

python tests/signalled.py STEP SIGNAL ARGUMENTS...
"""

import os
import runpy
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    step, name, *arguments = sys.argv[1:]
    import cnn_jax.runtime

    cnn_jax.runtime.prepare()

    from cnn_jax.training.recorder import Recorder

    record = Recorder.train

    def recording(self, chunk, *rest):
        if chunk.stop == int(step):
            os.kill(os.getpid(), getattr(signal, name))
        return record(self, chunk, *rest)

    Recorder.train = recording
    sys.argv = ["cnn_jax.main", *arguments]
    runpy.run_module("cnn_jax.main", run_name="__main__", alter_sys=True)
