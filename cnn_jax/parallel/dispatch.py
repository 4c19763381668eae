"""How many steps become one call to the device: a scan where that is fast, a Python loop where it is not."""

from collections.abc import Callable
from typing import Any

import jax

Body = Callable[..., Any]  # body(carry, row, *constants) -> carry


def scans_well(device: jax.Device | None = None) -> bool:
    """Whether a chunk should be one `lax.scan` on this kind of device.

    Not on a CPU: XLA runs a convolution inside a scan some 40 times slower there (9.45 s against 0.25 s a step of the
    ladder's network, jax 0.10.2 on 2 cores).
    """
    return (device or jax.devices()[0]).platform != "cpu"


def make_chunk(body: Body, *, scan: bool | None = None) -> Body:
    """Builds `chunk(carry, rows, *constants) -> carry`: `body` once for each row, in order.

    Args:
      body: pure; takes the carry, one row (a pytree of arrays) and the constants; returns the next carry, whose
        buffers it may reuse: the carry that went in is donated.
      scan: True for one program per chunk, False for one per step; None decides by device kind. In every step the
        two agree to rounding.
    """
    if scans_well() if scan is None else scan:

        def scanned(carry, rows, *constants):
            return jax.lax.scan(lambda c, row: (body(c, row, *constants), None), carry, rows)[0]

        return jax.jit(scanned, donate_argnums=0)

    step = jax.jit(body, donate_argnums=0)

    def looped(carry, rows, *constants):
        for index in range(len(jax.tree.leaves(rows)[0])):
            carry = step(carry, jax.tree.map(lambda x: x[index], rows), *constants)  # noqa: B023
        return carry

    return looped
