"""The web page: one screen a file, in the order in which a person meets them.

`layout` (frame, navigation, style), `overview`, `search`, `graph`, `chat`, `source` (the text behind a citation).
"""
