"""``vmm sweep``: verify a matrix of machines, each in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from vmm.cli import say
from vmm.cli.parser import Parser, columns
from vmm.config.outputs import STANDARD, Outputs
from vmm.errors import ConfigError, ExitStatus
from vmm.options import parse_int, parse_seconds

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from vmm.report.schema import OriginReport
    from vmm.sweep.matrix import Axis, Matrix

DESCRIPTION = """\
Verify a matrix of machines: every combination of the axes' values is a cell, which vmm verify boots in a process of its
own. FILE is a matrix in TOML, or in JSON if it ends in .json; axes given beside it come on top. What stands behind --
belongs to every cell's command line.

Values are separated by commas; what has a = in it, or begins with + or -, belongs to the value before it: 1,4,sockets=2
is 1 and 4,sockets=2. An empty one leaves the option out.

Each result is a line of JSON in the file of --results as soon as it is there. A sweep that was interrupted, or has more
values now, runs only the cells that the file does not have.
"""

EPILOG = """
examples:
  vmm sweep --firmware ovmf,seabios -smp 1,2,4 -m 256M,1G --html sweep.html
  vmm sweep --firmware seabios --e820 0,16,32,64,128 --tables 0,16,64 --timeout 30
  vmm sweep --firmware ovmf --axis '-cpu host,max' -- -machine q35,hpet=off
  vmm sweep --linux --e820 0,128,512 -- -direct
  vmm sweep matrix.toml --executor dask://scheduler:8786 --jobs 64

matrix.toml, for one:
  firmware = ["ovmf", "seabios"]
  smp = [1, "4,sockets=2"]
  m = ["256M", "6G"]
  options = ["-machine", "hpet=off"]
  axes."-device" = ["", "pvpanic"]

exit status:
  0    all of every cell arrived
  1    some did not, or a cell has no report
  2    wrong usage or bad input
  4    the host lacks something
  130  interrupted (Ctrl-C): what has a result is in the file
"""

DEFAULT_RESULTS = "sweep.jsonl"
DEFAULT_TIMEOUT = 60.0


def parser() -> Parser:
    """Return the command's options."""
    options = Parser("sweep", "[FILE] [OPTION ...] [-- OPTION ...]", DESCRIPTION, EPILOG)
    add = options.add_argument_group("axes").add_argument
    add("--firmware", metavar="NAME,...", help="ovmf, seabios, or paths")
    add("-machine", "-M", metavar="TYPE,...", help="values of -machine: q35, pc")
    add("-smp", metavar="N,...", help="values of -smp")
    add("-m", metavar="SIZE,...", help="values of -m")
    add("--e820", metavar="N,...", help="how many reserved entries the memory map has beside RAM's, from 512 GiB on")
    add("--tables", metavar="N,...", help="how many SSDTs there are beside our tables")
    add(
        "--axis",
        metavar="'-OPTION VALUE,...'",
        action="append",
        default=[],
        help="values of any other option of vmm verify; may be repeated",
    )
    add = options.add_argument_group("run").add_argument
    add("--linux", action="store_true", help="Linux is the report guest, as in vmm verify linux")
    add("--timeout", metavar="SECONDS", help="how long one guest may take (default 60)")
    add("--jobs", metavar="N", help="how many cells run at once (default: as many as there are processors)")
    add(
        "--executor",
        metavar="EXECUTOR",
        default="processes",
        help="who runs the cells: processes (the default) on this host; dask://HOST:PORT, a scheduler of Dask's, whose "
        "workers have vmm installed (extra [dask]); or MODULE:CALLABLE, which returns an executor like those of "
        "concurrent.futures",
    )
    add = options.add_argument_group("output").add_argument
    add("--results", metavar="PATH", default=DEFAULT_RESULTS, help="the file of results (default sweep.jsonl)")
    add("--again", action="store_true", help="forget what is in that file, and run every cell")
    add("--json", metavar="-", help="write each result to stdout, too, as a line of JSON; instead of the text")
    add("--html", metavar="PATH", help="write one self-contained page with heat maps")
    add("--markdown", metavar="PATH", help="write tables for a document; - is stdout, instead of the text")
    add("-q", "--quiet", action="store_true", help="no progress, no text")
    return options


def run(words: list[str]) -> int:
    """Run what of a matrix has no result yet, and show all of it."""
    own, common = _parted(words)
    arguments = parser().parse(own, "matrix")
    matrix = _matrix(arguments, common)
    deadline = DEFAULT_TIMEOUT if arguments.timeout is None else parse_seconds(arguments.timeout, "--timeout")
    jobs = parse_int(arguments.jobs or os.cpu_count() or 1, "--jobs", minimum=1, maximum=10_000)
    if arguments.json not in {None, STANDARD}:
        raise ConfigError(f"--json {arguments.json}: only - here; --results names the file")
    if arguments.json is not None and arguments.markdown == STANDARD:
        raise ConfigError("--json - and --markdown - would mix; give --markdown a path")
    from vmm.report import html
    from vmm.sweep import show
    from vmm.sweep.results import Results

    if arguments.html is not None:
        html.require()
    with (
        Results(arguments.results, again=arguments.again) as results,
        Outputs(None, {"--html": arguments.html, "--markdown": arguments.markdown}) as outputs,
    ):
        interrupted = _run(arguments, matrix, results, deadline, jobs)
        found = results.of(matrix)
        documents = {
            "--html": lambda: show.as_html(matrix, found, _origin(words)),
            "--markdown": lambda: show.as_markdown(matrix, found),
        }
        try:
            if not arguments.quiet and arguments.json is None and arguments.markdown != STANDARD:
                print(show.as_text(found, columns(sys.stdout, show.WIDTH)), flush=True)
        finally:
            outputs.write(documents)
    if interrupted:
        say(f"vmm: interrupted; run the same again to go on from {arguments.results}")
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK if all(result and result["outcome"] == "arrived" for _, result in found) else 1


def _run(arguments: argparse.Namespace, matrix: Matrix, results: Any, deadline: float, jobs: int) -> bool:
    """Run the cells that have no result; whether that was interrupted."""
    from vmm.sweep.executors import PROCESSES, executor
    from vmm.sweep.progress import Bar
    from vmm.sweep.run import run as run_cells

    todo = [cell for cell, result in results.of(matrix) if result is None]
    if not todo:
        return False
    if arguments.executor == PROCESSES:
        from vmm.config.machine import Accelerator
        from vmm.softcpu.decision import open_host

        open_host(Accelerator.AUTO).close()
    whole = sum(1 for _ in matrix.cells())
    with Bar(whole, whole - len(todo), enabled=not arguments.quiet and sys.stderr.isatty()) as bar:

        def on_result(result: dict[str, Any]) -> None:
            results.add(result)
            bar.update(result)
            if arguments.json is not None:
                print(json.dumps(result), flush=True)

        try:
            with executor(arguments.executor, jobs) as made:
                run_cells(todo, made, deadline, on_result, jobs)
        except KeyboardInterrupt:
            return True
    return False


def _parted(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before and behind ``--``."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _matrix(arguments: argparse.Namespace, common: list[str]) -> Matrix:
    from vmm.sweep.matrix import AXES, Matrix, merged, parse_axis, read_matrix, split_values

    matrix = Matrix(()) if arguments.matrix is None else read_matrix(arguments.matrix)
    axes: list[Axis] = [
        make(split_values(text)) for name, make in AXES.items() if (text := getattr(arguments, name)) is not None
    ]
    made = merged(matrix, [*axes, *map(parse_axis, arguments.axis)], common, linux=arguments.linux)
    _check_options(made)
    return made


def _check_options(matrix: Matrix) -> None:
    """Refuse words that no cell could have: unknown options, missing values. What one machine cannot have is a result.

    Raises:
        ConfigError: names all of them.
    """
    from vmm.cli.verify import parser as verify_parser

    verify_parser().parse([*matrix.common], "firmware")
    for axis in matrix.axes:
        for value in axis.values:
            verify_parser().parse([*value.words[:2]], "firmware")


def _origin(words: list[str]) -> OriginReport:
    from vmm.report.origin import origin

    return origin(["sweep", *words], [])
