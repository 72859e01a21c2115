"""Write the C source of one cffi extension from its declarations.

usage: generate.py MODULE OUTPUT.c PREAMBLE.h DECLARATIONS.cdef...
"""

import sys
from pathlib import Path

from cffi import FFI


def main() -> None:
    """Concatenate the declarations and emit the binding; the preamble gives the compiler the real types."""
    module, output, preamble, *declarations = sys.argv[1:]
    ffi = FFI()
    for path in declarations:
        ffi.cdef(Path(path).read_text(encoding="ascii"))
    ffi.set_source(module, f'#include "{Path(preamble).name}"', py_limited_api=True)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
