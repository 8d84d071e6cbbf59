-- The leaf is the truth; the columns beside it are what questions are asked by, taken from it when it was written.
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

-- Every index ends with the rowid, which is seq.
CREATE INDEX events_run ON events (run) WHERE run IS NOT NULL;
CREATE INDEX events_kind ON events (kind);
CREATE INDEX events_credential ON events (credential) WHERE credential IS NOT NULL;

-- Roots of the full subtrees of 256, 65,536, ... leaves (levels 8, 16, ...): a proof reads some hundred hashes instead of all.
CREATE TABLE tiles (
    level INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, number)
) STRICT, WITHOUT ROWID;

-- The compact range: the roots of the full subtrees that make up the tree, largest first; changed with every commit, so that a start reads one row.
CREATE TABLE tree (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    size INTEGER NOT NULL,
    hashes BLOB NOT NULL
) STRICT;

INSERT INTO tree (only, size, hashes) VALUES (1, 0, x'');

CREATE TABLE checkpoints (
    size INTEGER PRIMARY KEY CHECK (size > 0),
    time TEXT NOT NULL,
    note TEXT NOT NULL
) STRICT;

-- Each key that signed a checkpoint here, as a C2SP vkey.
CREATE TABLE verifiers (
    verifier TEXT PRIMARY KEY,
    since TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- An append-only record: the database itself refuses what no code of ours ever asks.
CREATE TRIGGER events_never_change BEFORE UPDATE ON events BEGIN SELECT raise(ABORT, 'an event is never changed'); END;
CREATE TRIGGER events_never_go BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'an event is never removed'); END;
