"""Floor 4: what is measured, and against whom.

Rooms: `machine` (where it ran), `report` (metrics, the JSON object, the results page), `harness`
(alternating runs, `run_bench`); below them one module a system, `bench/<package>/<system>.py`, each
defining `run(context)`.
"""
