-- insert_hold: An action that waits for sign-off.
INSERT INTO holds (hold, run, agent, action, dispatched_by, digest, policy, shown, body_text, rules, approvers, quorum, wait_seconds, four_eyes,
    opened, expires, state, reason)
VALUES (:hold, :run, :agent, :action, :dispatched_by, :digest, :policy, :shown, :body_text, :rules, :approvers, :quorum, :wait_seconds, :four_eyes,
    :opened, :expires, :state, :reason);

-- select_hold: One hold.
SELECT * FROM holds WHERE hold = :hold;

-- select_latest: What became of the last hold of this run and digest.
SELECT * FROM holds WHERE run = :run AND digest = :digest ORDER BY rowid DESC LIMIT 1;

-- select_holds: Holds, newest first, of one state or run where asked.
SELECT * FROM holds
WHERE (:state IS NULL OR state = :state) AND (:run IS NULL OR run = :run)
ORDER BY hold DESC LIMIT :limit;

-- select_due: Open holds whose time is over.
SELECT * FROM holds WHERE state IN ('pending', 'granted') AND expires <= :now ORDER BY hold;

-- select_next_expiry: When the next open hold's time is over.
SELECT min(expires) AS expires FROM holds WHERE state IN ('pending', 'granted');

-- select_open_of_run: Open holds of a run.
SELECT * FROM holds WHERE state IN ('pending', 'granted') AND run = :run ORDER BY hold;

-- select_open_of_agent: Open holds of an agent under another policy than the one in force.
SELECT * FROM holds WHERE state IN ('pending', 'granted') AND agent = :agent AND policy <> :policy ORDER BY hold;

-- count_open: How many open holds a run has.
SELECT count(*) AS open FROM holds WHERE state IN ('pending', 'granted') AND run = :run;

-- move_hold: One step of a hold, from the state it was decided in and from no other.
UPDATE holds SET state = :state, reason = :reason WHERE hold = :hold AND state = :from_state;

-- redeem_hold: The use of a grant, for one action.
UPDATE holds SET state = 'redeemed', reason = :reason, redeemed_by = :action WHERE hold = :hold AND state = 'granted';

-- insert_signature: An operator's word on a hold; each gives each word once.
INSERT INTO signatures (hold, number, operator, outcome, why, time) VALUES (:hold, :number, :operator, :outcome, :why, :time);

-- select_signatures: What was signed on a hold, in order.
SELECT * FROM signatures WHERE hold = :hold ORDER BY number;
