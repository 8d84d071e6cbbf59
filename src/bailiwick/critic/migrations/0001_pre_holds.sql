CREATE TABLE holds (
    hold TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    agent TEXT NOT NULL,
    action TEXT NOT NULL,
    dispatched_by TEXT NOT NULL,
    digest TEXT NOT NULL,
    policy TEXT NOT NULL,
    shown BLOB NOT NULL,
    body_text TEXT NOT NULL,
    rules BLOB NOT NULL,
    approvers BLOB NOT NULL,
    quorum INTEGER NOT NULL CHECK (quorum >= 1),
    wait_seconds REAL NOT NULL,
    four_eyes INTEGER NOT NULL CHECK (four_eyes IN (0, 1)),
    opened TEXT NOT NULL,
    expires TEXT NOT NULL CHECK (expires > opened),
    state TEXT NOT NULL CHECK (state IN ('pending', 'granted', 'denied', 'redeemed', 'expired', 'void')),
    reason TEXT NOT NULL
) STRICT;

-- An identical retry finds its hold; there is never a second one to find.
CREATE UNIQUE INDEX holds_open ON holds (run, digest) WHERE state IN ('pending', 'granted');
CREATE INDEX holds_of_run ON holds (run, digest);
CREATE INDEX holds_by_state ON holds (state, hold);
CREATE INDEX holds_due ON holds (expires) WHERE state IN ('pending', 'granted');

CREATE TABLE signatures (
    hold TEXT NOT NULL REFERENCES holds (hold),
    number INTEGER NOT NULL,
    operator TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('granted', 'denied')),
    why TEXT NOT NULL,
    time TEXT NOT NULL,
    PRIMARY KEY (hold, number),
    UNIQUE (hold, operator, outcome)
) STRICT, WITHOUT ROWID;

-- What was used, refused or ended stays so, whatever the code believes.
CREATE TRIGGER holds_end_once BEFORE UPDATE OF state ON holds
WHEN OLD.state IN ('denied', 'redeemed', 'expired', 'void') OR (NEW.state = 'redeemed' AND OLD.state <> 'granted')
BEGIN
    SELECT RAISE(ABORT, 'a hold ends once, and only a granted one is redeemed');
END;

CREATE TRIGGER holds_keep_what_was_shown
BEFORE UPDATE OF hold, run, agent, action, dispatched_by, digest, policy, shown, body_text, rules, approvers, quorum, four_eyes, opened, expires ON holds
BEGIN
    SELECT RAISE(ABORT, 'what a hold was opened for does not change');
END;
