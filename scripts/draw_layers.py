"""Draw the packages of edgevlm in layers, from the imports in the code.

`python -m scripts.draw_layers` prints the number of packages, layers and imports; with ``--svg FILE`` it
writes the picture, and with a folder as argument it reads another checkout. A box is a package or a module
directly in `edgevlm`. It lies one layer above the highest box that it imports, so no arrow can point up;
boxes that import each other in a circle are an error. Arrows that follow from others are left out.
"""

from __future__ import annotations

import argparse
import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "edgevlm"
HIDDEN = {"__init__", "__main__"}

Imports = Mapping[str, set[str]]
"""Box to the boxes that it imports."""

WIDTH = 980
BOX_HEIGHT = 34
LAYER_HEIGHT = 92
CHARACTER = 8.2
PADDING = 12
GAP = 14

STYLE = """\
#layers-picture { color: var(--md-default-fg-color, currentColor); font: 13px ui-monospace, monospace; }
#layers-picture text { fill: currentColor; text-anchor: middle; dominant-baseline: central; }
#layers-picture rect { fill: var(--md-code-bg-color, white); stroke: currentColor; stroke-opacity: .35; }
#layers-picture rect.package { stroke: var(--md-accent-fg-color, teal); stroke-opacity: 1; }
#layers-picture path { fill: none; stroke: currentColor; stroke-opacity: .28; }"""


def find_imports(repository: Path) -> dict[str, set[str]]:
    """Return what each box imports, in functions and for type checkers, too."""
    root = repository / PACKAGE
    files = dict(_modules(root))
    imports: dict[str, set[str]] = {box: set() for box in files}
    for box, paths in files.items():
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            imports[box] |= {name for name in _imported(tree) if name in files} - {box}
    return imports


def _modules(root: Path) -> Iterator[tuple[str, list[Path]]]:
    for entry in sorted(root.iterdir()):
        if entry.suffix == ".py" and entry.stem not in HIDDEN:
            yield entry.stem, [entry]
        elif (entry / "__init__.py").is_file():
            found = [
                Path(folder) / name
                for folder, _, names in os.walk(entry, followlinks=True)
                for name in names
                if name.endswith(".py")
            ]
            yield entry.name, found


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield the first name below `edgevlm` of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == PACKAGE and rest:
                yield rest.partition(".")[0]


def find_layers(imports: Imports) -> list[list[str]]:
    """Return the boxes by layer, the lowest first.

    Raises:
        SystemExit: Boxes import each other in a circle.
    """
    try:
        order = list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        raise SystemExit(f"imports in a circle: {' -> '.join(error.args[1])}") from None
    depth: dict[str, int] = {}
    for box in order:
        depth[box] = max((depth[below] + 1 for below in imports[box]), default=0)
    return [
        sorted(box for box in order if depth[box] == level)
        for level in range(max(depth.values()) + 1)
    ]


def reduce_imports(imports: Imports) -> dict[str, set[str]]:
    """Return the imports without those that follow from others."""
    reach: dict[str, set[str]] = {}
    for box in TopologicalSorter(imports).static_order():
        reach[box] = imports[box].union(*(reach[below] for below in imports[box]))
    return {
        box: {
            below
            for below in direct
            if not any(below in reach[other] for other in direct - {below})
        }
        for box, direct in imports.items()
    }


def _place(
    layers: Sequence[Sequence[str]], reduced: Imports
) -> dict[str, tuple[float, float, float]]:
    """Return left, top and width of each box; a box lies near those that it imports."""
    places: dict[str, tuple[float, float, float]] = {}
    for level, boxes in enumerate(layers):

        def wish(box: str) -> float:
            below = [places[name][0] + places[name][2] / 2 for name in reduced[box]]
            return sum(below) / len(below) if below else WIDTH / 2

        ordered = sorted(boxes, key=lambda box: (wish(box), box))
        widths = [len(box) * CHARACTER + 2 * PADDING for box in ordered]
        free = WIDTH - sum(widths)
        gap = max(GAP, free / (len(ordered) + 1))
        left = (WIDTH - sum(widths) - gap * (len(ordered) - 1)) / 2
        top = (len(layers) - 1 - level) * LAYER_HEIGHT + PADDING
        for box, width in zip(ordered, widths, strict=True):
            places[box] = (left, top, width)
            left += width + gap
    return places


def draw(imports: Imports) -> str:
    """Return the picture as SVG; it takes its colours from the page around it."""
    layers, reduced = find_layers(imports), reduce_imports(imports)
    places = _place(layers, reduced)
    height = (len(layers) - 1) * LAYER_HEIGHT + BOX_HEIGHT + 2 * PADDING
    lines = [
        f'<svg id="layers-picture" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="packages of edgevlm in layers; imports point down">',
        f"<style>{STYLE}</style>",
    ]
    for box, below in sorted(reduced.items()):
        left, top, width = places[box]
        x, y = left + width / 2, top + BOX_HEIGHT
        for name in sorted(below):
            end_left, end, end_width = places[name]
            end_x, middle = end_left + end_width / 2, (y + end) / 2
            lines.append(
                f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {middle:.0f} {end_x:.0f} {middle:.0f} '
                f'{end_x:.0f} {end:.0f}"><title>{box} imports {name}</title></path>'
            )
    for box, (left, top, width) in places.items():
        kind = "package" if (REPOSITORY / PACKAGE / box).is_dir() else "module"
        lines.append(
            f'<rect class="{kind}" x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" '
            f'height="{BOX_HEIGHT}" rx="5"/><text x="{left + width / 2:.0f}" '
            f'y="{top + BOX_HEIGHT / 2:.0f}">{escape(box)}</text>'
        )
    return "\n".join([*lines, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", type=Path, nargs="?", default=REPOSITORY)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture")
    arguments = parser.parse_args()
    imports = find_imports(arguments.repository)
    layers = find_layers(imports)
    count = sum(map(len, imports.values()))
    print(
        f"{len(imports)} packages and modules, {len(layers)} layers, {count} imports, 0 up, 0 circles"
    )
    for number, boxes in reversed(list(enumerate(layers))):
        print(f"{number:2}  {' '.join(boxes)}")
    if arguments.svg:
        arguments.svg.write_text(draw(imports) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
