"""`windlass graph`: keep a graph, rank around a node, embed its nodes, find the group around some, draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from windlass.app.options import AsJson

_graph = typer.Typer(
    help="Graphs: import, rank, embed, communities, plot.\n\nExample: windlass graph import follows.csv follows.graph",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Stored = Annotated[Path, typer.Argument(help="A graph that `windlass graph import` wrote.", show_default=False)]
Seeds = Annotated[list[str], typer.Argument(help="Nodes, by their names or numbers.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="Write the result as Parquet.")]


def register(app: typer.Typer) -> None:
    app.add_typer(_graph, name="graph")


@_graph.command("import")
def import_graph(
    file: Annotated[Path, typer.Argument(help="An edge list (.csv, .tsv, .txt, .gz), .parquet or .graphml.")],
    into: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    directed: Annotated[bool, typer.Option("--directed", help="Edges go one way.")] = False,
    source: Annotated[str | None, typer.Option(help="Column of sources.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of targets.")] = None,
    weight: Annotated[str | None, typer.Option(help="Column of weights.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a graph from a file and keep it as a folder that opens at once.

    Example: windlass graph import follows.csv follows.graph --directed
    """
    from windlass.app import terminal
    from windlass.graphs.files import read_graph

    graph = read_graph(file, directed=directed, source=source, target=target, weight=weight)
    graph.save(into)
    facts = {
        "nodes": graph.num_nodes, "edges": graph.num_edges, "directed": graph.directed,
        "weighted": graph.weights is not None, "folder": str(into),
    }  # fmt: skip
    if as_json:
        terminal.print_json(facts)
        return
    print(f"{into}: {graph.num_nodes:,} nodes, {graph.num_edges:,} edges")


@_graph.command()
def rank(
    graph: Stored,
    seeds: Seeds,
    top: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 20,
    restart: Annotated[float, typer.Option(help="Chance to go back to the seeds; larger stays nearer.")] = 0.15,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Nodes that matter to some nodes, by personalised PageRank.

    Example: windlass graph rank follows.graph ann bob --top 10
    """
    from windlass.graphs.graph import Graph
    from windlass.graphs.pagerank import personalized_pagerank

    opened = Graph.open(graph)
    found = personalized_pagerank(opened, _numbers(opened, seeds), restart=restart, tol=1e-6, method="push", top=top)
    ids, scores = found[0]
    _show(opened.ids(ids), {"score": scores.tolist()}, out, as_json)


@_graph.command()
def embed(
    graph: Stored,
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write: node, vector.", show_default=False)],
    dim: Annotated[int, typer.Option(min=1, help="Length of a vector.")] = 256,
    beta: Annotated[float, typer.Option(help="Below zero: hubs count less.")] = -0.6,
    tune: Annotated[int, typer.Option(min=0, help="Settings to try on held-out edges; 0: none.")] = 0,
) -> None:
    """A vector for every node, without training.

    Example: windlass graph embed follows.graph --out vectors.parquet
    """
    from windlass.app.terminal import TerminalProgress
    from windlass.graphs.graph import Graph
    from windlass.graphs.node_embeddings import FastRP

    opened = Graph.open(graph)
    model = FastRP(dim=dim, beta=beta)
    progress = TerminalProgress()
    try:
        if tune:
            model.tune(opened, trials=tune)
        else:
            model.fit(opened, progress)
    finally:
        progress.close()
    _write(out, {"node": opened.ids(range(opened.num_nodes)), "vector": list(model.embedding_)})
    print(f"{out}: {opened.num_nodes:,} vectors of {dim} numbers")


@_graph.command()
def communities(
    graph: Stored,
    seeds: Seeds,
    size: Annotated[int, typer.Option(min=0, help="Members; 0: up to the largest drop of the scores.")] = 50,
    method: Annotated[str, typer.Option(help="average, agglomerative or pagerank.")] = "average",
    fuse: Annotated[bool, typer.Option("--fuse", help="Join with personalised PageRank from the seeds.")] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The group around some nodes, by whose neighbours are alike.

    Example: windlass graph communities follows.graph ann bob cid --size 20
    """
    from windlass.app.terminal import TerminalProgress
    from windlass.graphs.communities import CommunityIndex
    from windlass.graphs.graph import Graph
    from windlass.graphs.pagerank import nearness

    opened = Graph.open(graph)
    numbers = _numbers(opened, seeds)
    progress = TerminalProgress(quiet=as_json)
    try:
        index = CommunityIndex.build(opened, progress=progress)
    finally:
        progress.close()
    prior: Any = None
    if fuse:
        prior = nearness(opened, numbers, top=max(200, 4 * size))
    found = index.query(numbers, size or None, method=method, prior=prior, graph=opened)  # type: ignore[arg-type]
    _show(opened.ids(found.members), {"score": found.scores.tolist()}, out, as_json)


@_graph.command()
def plot(
    graph: Stored,
    seeds: Annotated[list[str] | None, typer.Argument(help="Draw what matters to these nodes; none: all.")] = None,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("graph.html"),
    most: Annotated[int, typer.Option(min=1, max=5000, help="Nodes to draw at most.")] = 5000,
) -> None:
    """A picture of a graph and its groups as one HTML file, to be moved and zoomed in a browser, without a network.

    Example: windlass graph plot follows.graph --out follows.html
    """
    from windlass.app.page.graph_chart import described, page_file
    from windlass.app.terminal import TerminalProgress
    from windlass.core import storage
    from windlass.graphs.graph import Graph
    from windlass.graphs.picture import draw

    opened = Graph.open(graph)
    progress = TerminalProgress()
    try:
        picture = draw(opened, _numbers(opened, seeds or []), most=most, progress=progress)
    finally:
        progress.close()
    names = [str(name) for name in opened.ids(picture.nodes)]
    storage.write_atomic(out, page_file(picture, names, graph.stem).encode())
    print(f"{out}: {described(picture)}")


def _numbers(graph: Any, names: list[str]) -> list[int]:
    """Node numbers; what was typed is a number where the graph's ids are numbers."""
    wanted: list[Any] = list(names)
    if graph.node_ids is None or graph.node_ids.dtype != object:
        wanted = [int(name) if name.lstrip("-").isdigit() else name for name in names]
    numbers: list[int] = graph.numbers(wanted).tolist()
    return numbers


def _show(nodes: list[Any], columns: dict[str, list[Any]], out: Path | None, as_json: bool) -> None:
    from windlass.app import terminal

    if out is not None:
        _write(out, {"node": nodes, **columns})
    rows = [dict(zip(("node", *columns), row, strict=True)) for row in zip(nodes, *columns.values(), strict=True)]
    if as_json:
        terminal.print_json(rows)
    elif out is None:
        for row in rows:
            print(f"{row['score']:.6f}  {row['node']}")
    else:
        print(f"{out}: {len(rows)} nodes")


def _write(path: Path, columns: dict[str, Any]) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as parquet

    from windlass.core import storage

    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    storage.write_atomic(path, buffer.getvalue())
