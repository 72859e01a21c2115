"""What the package's modules import of each other."""

import ast
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vmm

ROOT = Path(vmm.__file__).parents[1]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in ROOT.glob("vmm/**/*.py")}


def imports(tree: ast.AST, *, hints: bool = False) -> Iterator[str]:
    """What a module imports, inside functions too; with ``hints``, what only type checkers see as well."""
    for node in ast.iter_child_nodes(tree):
        if not hints and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else str(node.module) for name in whole)
        yield from imports(node, hints=hints)


def package(module: str) -> str:
    """The package of vmm that a module belongs to; those that lie in vmm itself stand for themselves."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("unit", [str, package], ids=["modules", "packages"])
def test_imports_form_no_circle(unit: Callable[[str], str]) -> None:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        imported = {unit(name) for name in imports(ast.parse(path.read_bytes())) if name in MODULES}
        graph.setdefault(unit(module), set()).update(imported - {unit(module)})
    assert len(graph["vmm.assembly"]) > 5
    TopologicalSorter(graph).prepare()


FAMILY = frozenset({"vmm.kvm.system", "vmm.kvm.vm", "vmm.kvm.vcpu"})
"""A descriptor of KVM makes its children, which keep it."""


def test_type_hints_form_no_circle_either() -> None:
    def node(module: str) -> str:
        return "vmm.kvm's descriptors" if module in FAMILY else module

    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        imported = {node(name) for name in imports(ast.parse(path.read_bytes()), hints=True) if name in MODULES}
        # vmm itself names its modules' contents for users.
        graph.setdefault(node(module), set()).update(imported - {node(module), "vmm"})
    assert "vmm.run.outcome" in graph["vmm.run.expected"]
    TopologicalSorter(graph).prepare()
