"""Benchmarks of models: the engine, the encoder, weight formats."""
