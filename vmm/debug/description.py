"""The registers of a vCPU as a debugger is told of them: which there are, in 16-, 32- and 64-bit code.

GDB's manual, appendices G.4 and G.5.9, names the features and registers that gdb and lldb know. ``org.vmm.system`` is
ours. RIP is the linear address of the next instruction, CS's base included: a debugger knows of no segments, and it
compares RIP with the addresses of its breakpoints.
"""

from functools import cache
from typing import NamedTuple

_FLAGS = (
    *("CF", "", "PF", "", "AF", "", "ZF", "SF", "TF", "IF", "DF", "OF", "", "", "NT", ""),
    *("RF", "VM", "AC", "VIF", "VIP", "ID"),
)

_ARCHITECTURES = {16: "i8086", 32: "i386", 64: "i386:x86-64"}

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")

_X87 = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")


class Register(NamedTuple):
    """One register.

    Attributes:
        name: the debugger's.
        bits: its width.
        type: in the description's words.
        feature: which it belongs to.
        group: "" or the group in which gdb lists it.
    """

    name: str
    bits: int
    type: str
    feature: str
    group: str = ""


@cache
def layout(bits: int) -> tuple[Register, ...]:
    """The registers, in the order of their numbers, of 16-, 32- or 64-bit code."""
    word = 64 if bits == 64 else 32
    core, sse = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"
    if bits == 64:
        general = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))]
        counter = "rip"
    else:
        general = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"]
        counter = "eip"
    pointers = {"rbp", "rsp", "ebp", "esp"}
    registers = [Register(name, word, "data_ptr" if name in pointers else f"int{word}", core) for name in general]
    registers.append(Register(counter, word, "code_ptr", core))
    registers.append(Register("eflags", 32, "i386_eflags", core))
    registers += [Register(name, 32, "int32", core) for name in SEGMENTS]
    registers += [Register(f"st{number}", 80, "i387_ext", core) for number in range(8)]
    registers += [Register(name, 32, "int", core, "float") for name in _X87]
    registers += [Register(f"xmm{number}", 128, "vec128", sse) for number in range(16 if bits == 64 else 8)]
    registers.append(Register("mxcsr", 32, "i386_mxcsr", sse, "vector"))
    if bits == 64:
        registers += [Register(name, 64, "int64", "org.gnu.gdb.i386.segments") for name in ("fs_base", "gs_base")]
    system = ["cr0", "cr2", "cr3", "cr4", "cr8", "efer"]
    system += [f"{name}_base" for name in SEGMENTS if bits != 64 or name not in {"fs", "gs"}]
    system += ["gdt_base", "gdt_limit", "idt_base", "idt_limit"]
    registers += [Register(name, word, f"int{word}", "org.vmm.system", "system") for name in system]
    return tuple(registers)


def description(bits: int) -> str:
    """The same in XML, as ``qXfer:features:read`` gives it."""
    types = {
        "org.gnu.gdb.i386.core": _flags_type("i386_eflags", _FLAGS),
        "org.gnu.gdb.i386.sse": _VECTOR_TYPES,
    }
    parts = [
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">',
        f"<architecture>{_ARCHITECTURES[bits]}</architecture>",
    ]
    feature = ""
    for number, register in enumerate(layout(bits)):
        if register.feature != feature:
            parts.append(f'{"</feature>" if feature else ""}<feature name="{register.feature}">')
            feature = register.feature
            parts.append(types.get(feature, ""))
        group = f' group="{register.group}"' if register.group else ""
        parts.append(
            f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}" regnum="{number}"{group}/>'
        )
    parts.append("</feature></target>")
    return "".join(parts)


def _flags_type(name: str, flags: tuple[str, ...]) -> str:
    fields = "".join(f'<field name="{flag}" start="{bit}" end="{bit}"/>' for bit, flag in enumerate(flags) if flag)
    return f'<flags id="{name}" size="4">{fields}</flags>'


_VECTOR_TYPES = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>'
) + _flags_type(
    "i386_mxcsr", ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM", "", "", "FZ")
)
