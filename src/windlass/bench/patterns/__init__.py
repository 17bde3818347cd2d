"""Benchmarks of patterns: representatives, groups, missing cells, parts, programs."""
