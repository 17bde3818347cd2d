"""Benchmarks of the serving engine and its policies."""
