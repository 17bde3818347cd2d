"""Floor 1: files and tables in, clean described documents out.

Rooms, in the order data passes them: `scan` (what is in the folder, what changed), `readers` (one file to one
`Document`, inside a limited child process), `profile` (what a table holds).
"""
