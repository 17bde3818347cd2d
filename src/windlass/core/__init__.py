"""Floor 0: errors, settings, storage, progress, and the catalogue of systems.

Rooms: `errors` (what a person may see go wrong), `settings` (one tree of options), `progress` (how far long work
is), `storage` (the one door to the disk), `workspace` (a folder's `.windlass/`), `sandbox` (the one limited child
process), `tasks` (data-parallel jobs), `randomness` (counter-based numbers), `catalogue` (the 76 systems).
"""
