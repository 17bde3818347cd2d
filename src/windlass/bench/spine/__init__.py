"""Benchmarks of the main job: how fast a folder becomes searchable, and how good its answers are."""
