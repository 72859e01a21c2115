"""The matrix of a sweep: axes with their values, and the cells that they make."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm import inputs, options
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LIMIT: Final = 1 << 20
"""Bytes of a file with a matrix."""

MOST_CELLS: Final = 100_000

MOST_GENERATED: Final = 100_000
"""Entries of the memory map, or tables, of one cell."""

_ENTRY: Final = 1 << 20
_ENTRIES_AT: Final = 512 << 30
"""Where the entries of the axis e820 are: 1 MiB each, and as much between two, so that nobody joins them."""


class Value(NamedTuple):
    """One value of an axis: as it is shown, and what it adds to the command line."""

    label: str
    words: tuple[str, ...]


class Axis(NamedTuple):
    """What differs from cell to cell."""

    name: str
    values: tuple[Value, ...]


class Cell(NamedTuple):
    """One machine: the axes' values by name, and the words of its command line."""

    axes: dict[str, str]
    words: tuple[str, ...]

    @property
    def key(self) -> str:
        """Tells a cell from all others, in a file of results too."""
        return json.dumps([self.axes, self.words], sort_keys=True)

    @property
    def title(self) -> str:
        """The axes' values, in words."""
        return ", ".join(f"{name} {label or '-'}" for name, label in self.axes.items())


class Matrix(NamedTuple):
    """Axes, the last of which changes fastest, and what all cells have in common.

    Attributes:
        axes: in the order in which their words come.
        common: words behind those of the axes.
        linux: whether Linux is the report guest.
    """

    axes: tuple[Axis, ...]
    common: tuple[str, ...] = ()
    linux: bool = False

    def cells(self) -> Iterator[Cell]:
        """Every combination of values."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            axes = {axis.name: value.label for axis, value in zip(self.axes, values, strict=True)}
            words = [word for value in values for word in value.words]
            yield Cell(axes, (*(["linux"] if self.linux else []), *words, *self.common))

    def check(self) -> None:
        """Refuse a matrix that nobody could want.

        Raises:
            ConfigError: it has no axis, an axis no value or one twice, or there are too many cells.
        """
        if not self.axes:
            raise ConfigError("vmm sweep: nothing differs from cell to cell; -smp 1,2,4 would be an axis")
        count = 1
        for axis in self.axes:
            labels = [value.label for value in axis.values]
            if not labels or len(set(labels)) < len(labels):
                raise ConfigError(f"{axis.name}: {'a value is there twice' if labels else 'there is no value'}")
            count *= len(labels)
        if count > MOST_CELLS:
            raise ConfigError(f"vmm sweep: {count} cells, more than {MOST_CELLS}")


def split_values(text: str) -> list[str]:
    """Split a list of QEMU's values: what has a ``=``, or begins with + or -, belongs to the value before it.

    ``1,2,sockets=2`` are 1 and ``2,sockets=2``; ``,x=1`` are nothing and ``x=1``.
    """
    values: list[str] = []
    for part in options.split_commas(text):
        if values and values[-1] and ("=" in part or part[:1] in {"+", "-"}):
            values[-1] += "," + part.replace(",", ",,")
        else:
            values.append(part.replace(",", ",,"))
    return values


def option_axis(option: str, values: Sequence[str]) -> Axis:
    """Return the axis of an option of `vmm verify`; an empty value leaves it out."""
    return Axis(option.lstrip("-"), tuple(Value(value, (option, value) if value else ()) for value in values))


def parse_axis(text: str) -> Axis:
    """Return the axis that ``--axis '-cpu host,max'`` describes.

    Raises:
        ConfigError: it describes none.
    """
    option, _, values = text.partition(" ")
    if not option.startswith("-") or not values.strip():
        raise ConfigError(f"--axis {text!r}: an option and its values, such as '-machine q35,pc'")
    return option_axis(option, split_values(values.strip()))


def _firmware(values: Sequence[str]) -> Axis:
    return Axis("firmware", tuple(Value(value, (value,)) for value in values))


def _entries(values: Sequence[str]) -> Axis:
    """So many entries of the memory map beside RAM's, all reserved."""

    def words(index: int) -> tuple[str, ...]:
        base = _ENTRIES_AT + 2 * index * _ENTRY
        return "-e820", f"base={base:#x},size={_ENTRY:#x},type=reserved"

    return _generated("e820", values, words)


def _tables(values: Sequence[str]) -> Axis:
    """So many SSDTs beside ours, with nothing in them."""
    return _generated(
        "tables", values, lambda index: ("-acpitable", f"sig=SSDT,rev=2,oem_table_id=SWEEP{index:03X},data=/dev/null")
    )


def _generated(name: str, values: Sequence[str], words: Callable[[int], tuple[str, ...]]) -> Axis:
    made = []
    for value in values:
        count = options.parse_int(value, f"--{name}", minimum=0, maximum=MOST_GENERATED)
        made.append(Value(str(count), tuple(word for index in range(count) for word in words(index))))
    return Axis(name, tuple(made))


AXES: Final[dict[str, Callable[[Sequence[str]], Axis]]] = {
    "firmware": _firmware,
    "machine": lambda values: option_axis("-machine", values),
    "smp": lambda values: option_axis("-smp", values),
    "m": lambda values: option_axis("-m", values),
    "e820": _entries,
    "tables": _tables,
}
"""Axes that have an option of their own, in the order in which they vary, the last one fastest."""


def read_matrix(path: str) -> Matrix:
    """Read a matrix from a TOML file, or from JSON in a file that ends in .json.

    Its keys are the names of `AXES`, each with a list; ``axes``, a table of lists by option; ``options``, words for
    every cell; and ``linux``, whether Linux is the report guest.

    Raises:
        ConfigError: the file cannot be read, or is none.
    """
    data = inputs.read_file(Path(path), "vmm sweep", limit=_LIMIT)
    try:
        text = data.decode("utf-8")
        found: Any = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not a table with axes")
    common = tuple(_texts(path, "options", found.pop("options", [])))
    linux = found.pop("linux", False)
    if not isinstance(linux, bool):
        raise ConfigError(f"{path}: linux: true or false, not {linux!r}")
    more = found.pop("axes", {})
    if not isinstance(more, dict):
        raise ConfigError(f"{path}: axes: options with lists of values, not {more!r}")
    if unknown := found.keys() - AXES.keys():
        raise ConfigError(f"{path}: {', '.join(sorted(unknown))}: known are {', '.join(AXES)}, axes, options and linux")
    axes = [AXES[name](_texts(path, name, found[name])) for name in AXES if name in found]
    axes += [option_axis(option, _texts(path, option, values)) for option, values in more.items()]
    return Matrix(tuple(axes), common, linux)


def _texts(path: str, name: str, values: object) -> list[str]:
    if not isinstance(values, list) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in values
    ):
        raise ConfigError(f"{path}: {name}: a list of texts and numbers, not {values!r}")
    return [str(value) for value in values]


def merged(matrix: Matrix, axes: Sequence[Axis], common: Sequence[str], *, linux: bool = False) -> Matrix:
    """Return a matrix with more axes, those of the same name replaced, and more words for each cell.

    Args:
        matrix: what there is.
        axes: those that come on top.
        common: more words for each cell.
        linux: Linux is the report guest.

    Raises:
        ConfigError: as `Matrix.check`.
    """
    named = {axis.name: axis for axis in (*matrix.axes, *axes)}
    order = {name: number for number, name in enumerate(AXES)}
    ordered = sorted(named.values(), key=lambda axis: order.get(axis.name, len(order)))
    made = Matrix(tuple(ordered), (*matrix.common, *common), matrix.linux or linux)
    made.check()
    return made
