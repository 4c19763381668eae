"""Tables on standard output."""

import functools

from rich import box
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Returns a console without markup, because rich would interpret brackets and colons in names and messages.

    Where standard output is not a terminal, it is so wide that no line is wrapped.
    """
    make = functools.partial(Console, highlight=False, markup=False, emoji=False, force_jupyter=False)
    return make() if make().is_terminal else make(width=1000)


def show(table: Table, on: Console) -> None:
    """Prints a table; without lines if standard output is not a terminal."""
    table.box = box.SIMPLE_HEAD if on.is_terminal else None
    on.print(table)
