CREATE TABLE runs (
    run TEXT PRIMARY KEY,
    agent TEXT NOT NULL,
    task TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('requested', 'preparing', 'running', 'paused', 'ending', 'ended')),
    operator TEXT NOT NULL,
    observe INTEGER NOT NULL CHECK (observe IN (0, 1)),
    definition BLOB NOT NULL,
    requested TEXT NOT NULL,
    worker TEXT NOT NULL,
    started TEXT,
    ended TEXT,
    cause TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    status INTEGER,
    elapsed_seconds REAL NOT NULL DEFAULT 0,
    usage BLOB,
    changes BLOB,
    archive TEXT,
    applied TEXT,
    CHECK (state <> 'ended' OR ended IS NOT NULL)
) STRICT;

CREATE INDEX runs_unfinished ON runs (state) WHERE state <> 'ended';
CREATE INDEX runs_by_agent ON runs (agent, run);
