"""Benchmarks of the lake."""
