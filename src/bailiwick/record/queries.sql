-- append_event: Writes one event with its leaf and hash.
INSERT INTO events (seq, id, received, time, writer, kind, run, agent, action, verb, resource, decision, credential, model, tokens, cost, leaf, hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- append_tile: Writes the root of a full subtree.
INSERT INTO tiles (level, number, hash) VALUES (?, ?, ?);

-- move_tree: Says what the tree is after a commit; its condition is the size before, so that two writers cannot both append.
UPDATE tree SET size = :size, hashes = :hashes WHERE only = 1 AND size = :before;

-- append_checkpoint: Keeps a signed tree head; the first note for a size stays.
INSERT INTO checkpoints (size, time, note) VALUES (:size, :time, :note) ON CONFLICT (size) DO NOTHING;

-- append_verifier: Keeps a key that signs checkpoints of this record.
INSERT INTO verifiers (verifier, since) VALUES (:verifier, :since) ON CONFLICT (verifier) DO NOTHING;

-- tree: The size of the tree and the roots of its perfect subtrees.
SELECT size, hashes FROM tree WHERE only = 1;

-- last_sequence: The number of the last event.
SELECT coalesce(max(seq), 0) FROM events;

-- last_of_run: The number of a run's last event.
SELECT coalesce(max(seq), 0) FROM events WHERE run = ?;

-- known_ids: Which of these event ids are in the record already, and as what.
SELECT id, seq, leaf FROM events WHERE id IN (SELECT value FROM json_each(?));

-- leaves: Leaves as hashed, from a sequence number on.
SELECT seq, leaf FROM events WHERE seq >= ? ORDER BY seq LIMIT ?;

-- hashes: Leaf hashes in a range of sequence numbers, both ends included.
SELECT hash FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq;

-- hashed_leaves: Leaf hashes and leaves in a range of sequence numbers, both ends included.
SELECT hash, leaf FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq;

-- tiles: Roots of full subtrees of a level, in a range of numbers, both ends included.
SELECT hash FROM tiles WHERE level = ? AND number BETWEEN ? AND ? ORDER BY number;

-- event: One event by its sequence number.
SELECT seq, leaf FROM events WHERE seq = ?;

-- events: Events of the whole record after a sequence number, oldest first.
SELECT seq, leaf FROM events WHERE seq > :after AND seq < :before ORDER BY seq LIMIT :limit;

-- events_newest: Events of the whole record, newest first.
SELECT seq, leaf FROM events WHERE seq > :after AND seq < :before ORDER BY seq DESC LIMIT :limit;

-- events_of_run: Events of one run, of all kinds or of these, oldest first.
SELECT seq, leaf FROM events
WHERE run = :run AND seq > :after AND seq < :before AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
ORDER BY seq LIMIT :limit;

-- events_of_run_newest: Events of one run, of all kinds or of these, newest first.
SELECT seq, leaf FROM events
WHERE run = :run AND seq > :after AND seq < :before AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
ORDER BY seq DESC LIMIT :limit;

-- events_of_kind: Events of one kind of the whole record, oldest first.
SELECT seq, leaf FROM events WHERE kind = :kind AND seq > :after AND seq < :before ORDER BY seq LIMIT :limit;

-- events_of_kind_newest: Events of one kind of the whole record, newest first.
SELECT seq, leaf FROM events WHERE kind = :kind AND seq > :after AND seq < :before ORDER BY seq DESC LIMIT :limit;

-- events_of_credential: Who used this credential, and when, oldest first.
SELECT seq, leaf FROM events WHERE credential = :credential AND seq > :after AND seq < :before ORDER BY seq LIMIT :limit;

-- usage: What a run has used. Forwarded is an action that was allowed, or (in observe mode) ended all the same; a held one counts once, released or not.
SELECT
    count(DISTINCT CASE WHEN decision = 'allow' OR kind = 'action.finished' THEN action END),
    count(DISTINCT CASE WHEN (decision = 'allow' OR kind = 'action.finished') AND verb IN ('write', 'delete', 'execute', 'send') THEN action END),
    coalesce(sum(CASE WHEN kind = 'action.finished' THEN tokens END), 0),
    coalesce(sum(CASE WHEN kind = 'action.finished' THEN cost END), 0),
    coalesce(sum(CASE WHEN kind = 'action.finished' THEN json_extract(CAST(leaf AS TEXT), '$.event.body.request_bytes') END), 0),
    count(DISTINCT CASE WHEN kind = 'action.decided' AND decision = 'hold' THEN action END),
    count(DISTINCT CASE WHEN kind = 'action.decided' AND decision = 'deny' THEN action END)
FROM events WHERE run = ? AND kind IN ('action.decided', 'action.finished');

-- run_sequences: The sequence numbers of a run's events, up to one.
SELECT seq FROM events WHERE run = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?;

-- last_checkpoint: The signed tree head of the largest size.
SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1;

-- checkpoint_covering: The first signed tree head that covers a sequence number.
SELECT size, note FROM checkpoints WHERE size >= ? ORDER BY size LIMIT 1;

-- verifiers: The keys that signed checkpoints of this record, the newest last.
SELECT verifier FROM verifiers ORDER BY since, verifier;
