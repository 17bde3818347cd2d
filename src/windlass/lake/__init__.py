"""Floor 1: files and tables in, clean described documents out.

Rooms, in the order data passes them: `walk` (what is in the folder), `scan` (what changed in it), `readers` (one file
to one `Document`, inside a limited child process), `profile` (what a table holds).
"""
