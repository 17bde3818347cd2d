"""Workloads, cost, scale and power of a fleet of machines.

trace       readers of request traces: what came when, and how long it was
"""
