"""``python -m vmm`` and the ``vmm`` command: the process around :func:`vmm.cli.main`."""

import gc
import os
import sys


def main() -> None:
    """Run the command line and end the process with its exit status."""
    try:
        # Most of a small boot is loading modules, which makes no garbage, and taking the interpreter apart at the end,
        # of which nothing is gained: the machine is closed by then, and the kernel takes back what is left.
        gc.set_threshold(50_000)
        # Forget how often garbage was collected before: one look more, and all modules would be looked through.
        gc.freeze()
        _open_standard_streams()
        from vmm import cli
        from vmm.cli import standard_error

        standard_error.unblock()
        status = cli.main()
    except KeyboardInterrupt:
        os._exit(130)  # vmm.errors.ExitStatus.INTERRUPTED, which may be what could not be loaded
    try:
        standard_error.drain(hurried=status == 130)
    finally:
        os._exit(status)


def _open_standard_streams() -> None:
    """Put /dev/null where the caller closed one of the three, or the next file to be opened would be written to."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", encoding="utf-8"))


if __name__ == "__main__":
    main()
