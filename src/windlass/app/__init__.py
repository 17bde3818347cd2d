"""Floor 4: the only floor that knows a person. Command line, HTTP server, web page.

Rooms: `cli` (the `windlass` command and its `commands`), `lift` (what `up` does), `terminal` (progress and cards as
text), `http` (the server and its routes), `page` (the web page).
"""
