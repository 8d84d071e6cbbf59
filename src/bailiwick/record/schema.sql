CREATE INDEX events_credential ON events (credential) WHERE credential IS NOT NULL;

CREATE INDEX events_kind ON events (kind);

CREATE INDEX events_run ON events (run) WHERE run IS NOT NULL;

CREATE TABLE checkpoints (
    size INTEGER PRIMARY KEY CHECK (size > 0),
    time TEXT NOT NULL,
    note TEXT NOT NULL
) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY CHECK (seq > 0),
    id TEXT NOT NULL UNIQUE,
    received TEXT NOT NULL,
    time TEXT NOT NULL,
    writer TEXT NOT NULL,
    kind TEXT NOT NULL,
    run TEXT,
    agent TEXT,
    action TEXT,
    verb TEXT,
    resource TEXT,
    decision TEXT CHECK (decision IN ('allow', 'deny', 'hold')),
    credential TEXT,
    model TEXT,
    tokens INTEGER,
    cost INTEGER,
    leaf BLOB NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TABLE tiles (
    level INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE tree (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    size INTEGER NOT NULL,
    hashes BLOB NOT NULL
) STRICT;

CREATE TABLE verifiers (
    verifier TEXT PRIMARY KEY,
    since TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER events_never_change BEFORE UPDATE ON events BEGIN SELECT raise(ABORT, 'an event is never changed'); END;

CREATE TRIGGER events_never_go BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'an event is never removed'); END;

