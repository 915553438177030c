"""`influence`, the process: it answers to Ctrl-C before it imports anything that takes time."""

import os
import sys
from collections.abc import Sequence

from influence.cli.interrupts import INCOMPLETE, answered


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and end the process with its exit code.

    Args:
        argv: The arguments; the process's own if None.

    Raises:
        SystemExit: Always; see `influence.cli.ending` for the codes.
    """
    with answered(to_the_end=argv is None):
        if argv is None:
            _open_closed()
        from influence.cli.commands import app

        try:
            app(args=argv, prog_name="influence")
        except OSError as error:
            # Of a verb nothing is left to raise: help or a usage error was being printed.
            from influence.cli.streams import discard_output, tell

            discard_output()
            tell(f"error: standard output can't be written to: {error.strerror or error}.", "red")
            raise SystemExit(INCOMPLETE) from None


def _open_closed() -> None:
    """Open the standard streams that the caller closed, so that no file of ours gets their descriptors.

    Standard output is opened so that writing to it fails: an answer must not vanish.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free, which is this one.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
