"""The command `cnn-jax`, also `python -m cnn_jax`: runs one of the commands."""

import difflib
import os
import runpy
import sys

# Name, the module that `python -m` runs, and what it does.
COMMANDS = {
    "train": ("cnn_jax.main", "train a stage, or resume its run"),
    "evaluate": ("cnn_jax.evaluate", "score a run on all images of a split"),
    "predict": ("cnn_jax.predict", "classify image files"),
    "export": ("cnn_jax.export", "write a single-file model"),
    "ladder": ("cnn_jax.ladder", "train several stages with several seeds each"),
    "report": ("cnn_jax.report", "compare finished runs on a page"),
    "page": ("cnn_jax.page", "serve a run or an exported model as a web page"),
    "config": ("cnn_jax.config", "list the keys of a stage, with values and meanings"),
}
USAGE = "\n".join(
    [
        "Usage: cnn-jax COMMAND ...",
        "",
        *(f"  {name:<9} {what}" for name, (_, what) in COMMANDS.items()),
        "",
        "`cnn-jax COMMAND --help` lists the flags of a command. `python -m MODULE` is the same as `cnn-jax COMMAND`:",
        f"{', '.join(f'{module} for {name}' for name, (module, _) in COMMANDS.items() if not module.endswith(name))};",
        "cnn_jax.COMMAND for the others.",
    ]
)


def main() -> None:
    """Runs the command that the first argument names, with the arguments that follow it."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        _print(USAGE)
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"Did you mean {close[0]}?" if close else f"The commands are {', '.join(COMMANDS)}."
        sys.exit(f"Error: There is no command {name!r}. {hint}")
    else:
        sys.argv = [f"cnn-jax {name}", *arguments]
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


def _print(text: str | None) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, as in shells


if __name__ == "__main__":
    main()
