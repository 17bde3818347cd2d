"""Benchmarks of the vector store, a module a system; `data` makes what they run on."""
