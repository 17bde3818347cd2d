"""Benchmarks of models: how fast they run and how good they stay."""
