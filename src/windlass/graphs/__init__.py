"""Floor 1: graphs on a laptop. Arrays and callables in, arrays out.

Rooms, in the order data passes them: `files` (edge lists, Parquet, GraphML to a graph), `graph` (`Graph`: compressed
sparse rows), then what is asked of one: `pagerank` (what matters to a node), `node_embeddings` (a vector for every
node), `communities` (the group around some nodes). `array_folder` keeps any of them on disk.
"""

from windlass.graphs.graph import Graph

__all__ = ["Graph"]
