"""The tables of the workspace database, as numbered steps from an empty file to the newest version.

A step, once released, is never edited: a later change is a new step. `PRAGMA user_version` holds the number of steps
that a database has seen. Everything but `files` is derived from the user's folder and can be rebuilt from it.
"""

from __future__ import annotations

STEPS: tuple[str, ...] = (
    """
    -- One row a content and format: identical files share it. `text` is zlib-compressed UTF-8.
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY,
        content_hash TEXT NOT NULL,
        kind TEXT NOT NULL,
        reader_version INTEGER NOT NULL,
        title TEXT NOT NULL,
        named_after TEXT NOT NULL DEFAULT '', -- file name that title or tables are called after; '' when none is
        pages INTEGER,
        characters INTEGER NOT NULL,
        faithful INTEGER NOT NULL,
        encoding TEXT,
        warnings TEXT NOT NULL,
        text BLOB NOT NULL,
        UNIQUE (content_hash, kind)
    );

    -- One row a file of the folder, in exactly one state; `reason` and `message` say why it failed.
    CREATE TABLE files (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        scanned_ns INTEGER NOT NULL,
        content_hash TEXT,
        kind TEXT,
        state TEXT NOT NULL CHECK (state IN ('seen', 'parsed', 'indexed', 'failed')),
        reason TEXT,
        message TEXT,
        document_id INTEGER REFERENCES documents (id)
    );
    CREATE INDEX files_by_hash ON files (content_hash);
    CREATE INDEX files_by_document ON files (document_id);
    CREATE INDEX files_by_state ON files (state);

    -- One row a table found in a document; `columns` is the JSON of its profiles.
    CREATE TABLE tables (
        id INTEGER PRIMARY KEY,
        document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        rows INTEGER NOT NULL,
        start INTEGER NOT NULL,
        end INTEGER NOT NULL,
        columns TEXT NOT NULL,
        warnings TEXT NOT NULL
    );
    CREATE INDEX tables_by_document ON tables (document_id);

    -- One row a passage: the span [start, end) of the document's text, and what is indexed for it.
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY,
        document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('prose', 'code', 'schema', 'rows')),
        start INTEGER NOT NULL,
        end INTEGER NOT NULL,
        page INTEGER,
        table_id INTEGER REFERENCES tables (id) ON DELETE CASCADE,
        first_row INTEGER,
        last_row INTEGER,
        heading TEXT NOT NULL,
        text TEXT NOT NULL,
        text_hash BLOB
    );
    CREATE INDEX chunks_by_document ON chunks (document_id);
    CREATE INDEX chunks_by_text ON chunks (text_hash) WHERE text_hash IS NOT NULL;

    -- The lexical index reads its text from `chunks` and changes with it, in the same transaction: see `chunks_added`.
    CREATE VIRTUAL TABLE lexical USING fts5 (
        heading, text, content='chunks', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
    );
    -- Segments are merged 64 at a time instead of 4: a third less work while a folder is indexed, queries as fast.
    INSERT INTO lexical (lexical, rank) VALUES ('automerge', 0);
    INSERT INTO lexical (lexical, rank) VALUES ('crisismerge', 64);
    CREATE TRIGGER chunks_removed AFTER DELETE ON chunks
        WHEN EXISTS (SELECT 1 FROM lexical_docsize WHERE id = old.id)
    BEGIN
        INSERT INTO lexical (lexical, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
    END;

    -- A document goes with the last file that holds it, its passages with it, in the same transaction: at no moment
    -- does a passage belong to nothing.
    CREATE TRIGGER files_removed AFTER DELETE ON files WHEN old.document_id IS NOT NULL BEGIN
        DELETE FROM documents WHERE id = old.document_id
            AND NOT EXISTS (SELECT 1 FROM files WHERE document_id = old.document_id);
    END;
    CREATE TRIGGER files_changed AFTER UPDATE OF document_id ON files
        WHEN old.document_id IS NOT NULL AND old.document_id IS NOT new.document_id
    BEGIN
        DELETE FROM documents WHERE id = old.document_id
            AND NOT EXISTS (SELECT 1 FROM files WHERE document_id = old.document_id);
    END;

    -- Vectors by the text they stand for: equal passages are embedded once, a moved file not at all, and an edited
    -- one where it changed. Those that no passage wants any more go after the files were read again.
    CREATE TABLE embeddings (
        encoder TEXT NOT NULL,
        text_hash BLOB NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (encoder, text_hash)
    ) WITHOUT ROWID;

    -- `generation` grows with every change of the index; `unused_vectors` is there when there may be some.
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO counters VALUES ('generation', 0);
    -- New passages get their words when the transaction that brought them raises `generation`, all in one statement:
    -- FTS5 writes its buffer out after every statement, and a trigger on each passage costs five times as much.
    CREATE TRIGGER chunks_added AFTER UPDATE ON counters WHEN new.name = 'generation' BEGIN
        INSERT INTO lexical (rowid, heading, text) SELECT id, heading, text FROM chunks
            WHERE id > (SELECT coalesce(max(id), 0) FROM lexical_docsize);
    END;
    CREATE TRIGGER vectors_unused AFTER DELETE ON chunks
        WHEN old.text_hash IS NOT NULL AND NOT EXISTS (SELECT 1 FROM counters WHERE name = 'unused_vectors')
    BEGIN
        INSERT INTO counters VALUES ('unused_vectors', 1);
    END;
    """,
    """
    -- What the lake knows of each table: its profile, NULL where it could not be made; see `lake.survey`.
    CREATE TABLE profiles (
        table_id INTEGER PRIMARY KEY REFERENCES tables (id) ON DELETE CASCADE,
        version INTEGER NOT NULL,
        profile BLOB
    );
    -- All rows of the child are in the parent; `trivial` when that says little.
    CREATE TABLE contained (
        child INTEGER NOT NULL REFERENCES tables (id) ON DELETE CASCADE,
        parent INTEGER NOT NULL REFERENCES tables (id) ON DELETE CASCADE,
        trivial INTEGER NOT NULL,
        PRIMARY KEY (child, parent)
    ) WITHOUT ROWID;
    CREATE INDEX contained_by_parent ON contained (parent);
    -- MinHash signatures of texts (uint32), NULL for those too short to compare, and verified pairs, first < second.
    CREATE TABLE signatures (
        document_id INTEGER PRIMARY KEY REFERENCES documents (id) ON DELETE CASCADE,
        version INTEGER NOT NULL,
        slots BLOB
    );
    CREATE TABLE near_copies (
        first INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        second INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        similarity REAL NOT NULL,
        PRIMARY KEY (first, second)
    ) WITHOUT ROWID;
    CREATE INDEX near_copies_by_second ON near_copies (second);
    """,
    """
    -- Joins that are believed, as of the last new table: `columns` of the child refer to `keys` of the parent (JSON).
    CREATE TABLE joins (
        child INTEGER NOT NULL REFERENCES tables (id) ON DELETE CASCADE,
        columns TEXT NOT NULL,
        parent INTEGER NOT NULL REFERENCES tables (id) ON DELETE CASCADE,
        keys TEXT NOT NULL,
        probability REAL NOT NULL,
        mutual INTEGER NOT NULL,
        PRIMARY KEY (child, columns, parent)
    ) WITHOUT ROWID;
    CREATE INDEX joins_by_parent ON joins (parent);
    """,
    """
    -- What a join follows from, in words.
    ALTER TABLE joins ADD COLUMN why TEXT NOT NULL DEFAULT '';
    -- A share of the child's rows are in the parent, or all of them under other column names (JSON, as compared).
    CREATE TABLE overlaps (
        child INTEGER NOT NULL REFERENCES tables (id) ON DELETE CASCADE,
        parent INTEGER NOT NULL REFERENCES tables (id) ON DELETE CASCADE,
        share REAL NOT NULL,
        columns TEXT NOT NULL,
        keys TEXT NOT NULL,
        PRIMARY KEY (child, parent)
    ) WITHOUT ROWID;
    CREATE INDEX overlaps_by_parent ON overlaps (parent);
    ALTER TABLE profiles ADD COLUMN overlapped INTEGER NOT NULL DEFAULT 0;
    -- Folders as the last scan saw them. `digest` is of names and stat records, NULL when it must not be trusted;
    -- `inside` and `skipped` are JSON. A row stands only while the rows of `files` below it are those of that scan.
    CREATE TABLE folders (
        path TEXT PRIMARY KEY,
        digest BLOB,
        files INTEGER NOT NULL,
        inside TEXT NOT NULL,
        skipped TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
)

VERSION = len(STEPS)
