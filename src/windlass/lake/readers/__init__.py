"""Readers: one file in, one `Document` out, inside a limited child process.

Rooms, in the order a file passes them: `source` (bytes, capped), `detect` (which kind), `encoding` (bytes
to text), then one room a family (`text`, `markdown`, `html`, `pdf`, `word`, `slides`, `spreadsheet`,
`delimited`, `records`, `parquet`) which make blocks with `composing` and tables with `tables`. `read` is
the door: the sandbox calls `windlass.lake.readers.read:read_document`.
"""

from windlass.lake.readers.detect import SUPPORTED
from windlass.lake.readers.read import read_document

__all__ = ["SUPPORTED", "read_document"]
