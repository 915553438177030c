"""`influence`, the process: it answers to Ctrl-C before it imports anything that takes time."""

from collections.abc import Sequence

from influence.cli.interrupts import answered


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and end the process with its exit code.

    Args:
        argv: The arguments; the process's own if None.

    Raises:
        SystemExit: Always; see `influence.cli.ending` for the codes.
    """
    with answered(to_the_end=argv is None):
        from influence.cli.commands import app

        app(args=argv, prog_name="influence")


if __name__ == "__main__":
    main()
