"""Benchmarks of graphs: ranking around a node, node vectors, communities."""
