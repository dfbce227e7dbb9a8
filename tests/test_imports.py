"""What may import what, read from the sources: no circle among modules, and no floor imports one above it."""

import ast
from pathlib import Path

import hogwild

ROOT = Path(hogwild.__file__).parents[1]
FLOORS = {"hogwild.kernels": "kernels", "hogwild": "hogwild", "sparsecomm": "sparsecomm",
          "hogwild.experiments": "experiments"}


def modules() -> dict[str, Path]:
    """Every module of ours by the name by which it is imported."""
    found = {}
    for package, folder in FLOORS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(path, names) -> set[str]:
    """Those of `names` that a file imports, at its top or inside a function; of `from package import module` the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & names or {node.module}
    return found & names


def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: imported(path, set(found)) - {name} for name, path in found.items()}


def circles(edges) -> list[set[str]]:
    """Sets of nodes that reach each other."""
    reach = {}
    for name in edges:
        reach[name], ahead = set(), [name]
        while ahead:
            new = edges[ahead.pop()] - reach[name]
            reach[name] |= new
            ahead += new
    return [{name} | {other for other in reach[name] if name in reach[other]} for name in reach if name in reach[name]]


def test_the_search_finds_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}] * 3
    assert circles({"a": {"b"}, "b": set(), "d": {"a", "b"}}) == []
    edges = graph()
    assert "hogwild.cli.train" in edges["hogwild.cli.main"] and len(edges) > 100  # imported inside a function


def test_no_modules_import_each_other():
    """But for one, inside a function: DistributedOptimizer makes an object of its subclass."""
    known = {"sparsecomm.optimizer", "sparsecomm.wrapped"}
    assert [circle for circle in circles(graph()) if circle != known] == []


def test_no_floor_imports_one_above_it():
    def floor(name):
        return max((package for package in FLOORS if f"{name}.".startswith(f"{package}.")), key=len)
    order = list(FLOORS)
    up = [(name, other) for name, to in graph().items() for other in to
          if order.index(floor(other)) > order.index(floor(name))]
    assert up == []
