"""Makes the tables and office documents of `examples/harbour`.

Rooms, in the order data passes them: `world` (what was decided by hand), `names`, `customers`, `traffic`
(ships, calls, cargo), `billing`, `incidents`, `premises` (soundings, bollards, staff, tides), `tablefiles`
(rows to CSV, Parquet, workbooks) and `documents` (Markdown to PDF, DOCX, PPTX).
"""
