"""``python -m vmm`` and the ``vmm`` command: the process around :func:`vmm.cli.main`."""

import gc
import os
import sys


def main() -> None:
    """Run the command line and end the process with its exit status."""
    # Most of a small boot is loading modules, which makes no garbage, and taking the interpreter apart at the end, of
    # which nothing is gained: the machine is closed by then, and the kernel takes back what is left.
    gc.set_threshold(50_000)
    from vmm import cli  # noqa: PLC0415

    try:
        status = cli.main()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 0
    os._exit(status)


if __name__ == "__main__":
    main()
