"""Image classification with CNNs in JAX: a ladder of stages, exact resume, checkpoints that serve themselves."""

import signal
import sys

# While `python -m cnn_jax.COMMAND` imports, Ctrl-C ends it at once and without a traceback; see `cnn_jax.cli.run`.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
