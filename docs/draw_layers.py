"""Draw the layers of the code as a Mermaid diagram, from pyproject.toml and the real imports.

    python docs/draw_layers.py           # print the diagram
    python docs/draw_layers.py --write   # put it into docs/architecture.md

The boxes are the layers of the import contracts, and the arrows are the imports between them. An
arrow is left out where a chain of other arrows leads to the same folder.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- layers: made by `python docs/draw_layers.py --write` -->\n"
END = "<!-- end of layers -->"
Links = dict[str, set[str]]


def contracts() -> tuple[list[list[str]], set[str]]:
    """Return the rows of layers, the uppermost first, and the imports that a contract excepts."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layered = [one for one in settings["contracts"] if one["type"] == "layers"]
    (folders,) = (one for one in layered if one["layers"][0].startswith("lensdist."))
    (packages,) = (one for one in layered if one["layers"][0] == "experiments")
    above = [[name] for name in packages["layers"] if name != "lensdist"]
    rows = [[name.strip() for name in row.split(":")] for row in folders["layers"]]
    return above + rows, set(packages.get("ignore_imports", ()))


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, except those for the type checker alone."""
    todo: list[ast.AST] = [ast.parse(file.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def links(rows: list[list[str]], excepted: set[str]) -> Links:
    """Return the layers that each layer imports."""
    layers = [name for row in rows for name in row]

    def layer(module: str) -> str | None:
        return next((name for name in layers if _within(module, name)), None)

    found: Links = defaultdict(set)
    for package in ("experiments", "benchmarks", "slurm", "lensdist"):
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for other in imported(file):
                above, below = layer(module), layer(other)
                if above is None or below is None or above == below:
                    continue
                if not any(
                    _within(module, source) and _within(other, target)
                    for source, target in (one.split(" -> ") for one in excepted)
                ):
                    found[above].add(below)
    return found


def reduced(found: Links) -> Links:
    """Leave out every link that a chain of other links replaces."""

    def reach(start: str) -> set[str]:
        return {start}.union(*(reach(other) for other in found.get(start, ())))

    return {
        name: {
            other for other in others if not any(other in reach(via) for via in others - {other})
        }
        for name, others in found.items()
    }


def diagram() -> str:
    """Return the Mermaid diagram, fenced as Markdown wants it."""
    rows, excepted = contracts()
    arrows = reduced(links(rows, excepted))
    lines = ["```mermaid", "flowchart TD"]
    order = [name for row in rows for name in row]
    for name in order:
        path = name.replace(".", "/")
        shown = f"{path}.py" if (ROOT / f"{path}.py").exists() else f"{path}/"
        lines.append(f'  {_key(name)}["{shown}"]')
    for name in order:
        lines += [
            f"  {_key(name)} --> {_key(other)}"
            for other in sorted(arrows.get(name, ()), key=order.index)
        ]
    return "\n".join([*lines, "```", ""])


def _within(module: str, name: str) -> bool:
    """Return whether a module is a package of this name, or lies in it."""
    return f"{module}.".startswith(f"{name}.")


def _key(name: str) -> str:
    return name.replace(".", "_")


def replaced(text: str) -> str:
    """Return a document with the diagram between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{diagram()}{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text()))
    else:
        print(diagram(), end="")
