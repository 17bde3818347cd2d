"""Benchmarks of `windlass.retrieval`."""
