"""``python -m vmm`` and the ``vmm`` command."""

import sys

from vmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
