"""The graph of a run as a picture: one box per stage, coloured by what became of it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from pipelines.graph import CODE_STAGE, StageNode

COLOURS = {
    "Completed": "#2ac769",
    "Cached": "#8fb3ff",
    "Restored": "#b7a6f7",
    "Failed": "#fb4e4e",
    "Skipped": "#c9ccd3",
}
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 42, 34, 16, 10


def graph_svg(nodes: Sequence[StageNode], states: Mapping[str, str]) -> str:
    """The graph from left to right, as SVG.

    Args:
        nodes: stages, each after those that it reads from; the stage `code`, which all read from, isn't drawn.
        states: by name of a stage, the name of its state.
    """
    nodes = [node for node in nodes if node.name != CODE_STAGE]
    columns = _columns(nodes)
    places = {
        name: (MARGIN + x * (BOX_WIDTH + GAP_X), MARGIN + y * (BOX_HEIGHT + GAP_Y))
        for x, column in enumerate(columns)
        for y, name in enumerate(column)
    }
    width = 2 * MARGIN + len(columns) * (BOX_WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + max(map(len, columns), default=1) * (BOX_HEIGHT + GAP_Y) - GAP_Y
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *(_edge(places[other], places[node.name]) for node in nodes for other in node.upstream if other in places),
        *(_box(node.name, places[node.name], states.get(node.name, "")) for node in nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def data_url(svg: str) -> str:
    """A picture as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _columns(nodes: Sequence[StageNode]) -> list[list[str]]:
    """Names by how many stages stand before them at the most."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.name] = 1 + max((depth[other] for other in node.upstream if other in depth), default=-1)
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name, column in depth.items():
        columns[column].append(name)
    return columns


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT // 2
    x2, y2 = end[0], end[1] + BOX_HEIGHT // 2
    bend = GAP_X // 2
    return f'<path d="M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}" fill="none" stroke="#9aa3b2"/>'


def _box(name: str, place: tuple[int, int], state: str) -> str:
    x, y = place
    fill = COLOURS.get(state, "#eef0f4")
    return (
        f'<g><rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{fill}"/>'
        f'<text x="{x + 10}" y="{y + 17}" font-weight="bold">{escape(name)}</text>'
        f'<text x="{x + 10}" y="{y + 33}">{escape(state)}</text></g>'
    )
