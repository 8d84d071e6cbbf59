-- The action that a grant was used up for: who lost the answer asks again under it, and is told so.
ALTER TABLE holds ADD COLUMN redeemed_by TEXT NOT NULL DEFAULT '';

CREATE TRIGGER holds_have_one_redeemer BEFORE UPDATE OF redeemed_by ON holds
WHEN OLD.state <> 'granted' OR NEW.state <> 'redeemed'
BEGIN
    SELECT RAISE(ABORT, 'a hold is redeemed for one action, as it is redeemed');
END;
