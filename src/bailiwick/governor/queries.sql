-- insert_run: A run as it was asked for; nothing has been done yet.
INSERT INTO runs (run, agent, task, state, operator, observe, definition, requested, worker)
VALUES (:run, :agent, :task, :state, :operator, :observe, :definition, :requested, :worker);

-- select_run: One run.
SELECT * FROM runs WHERE run = :run;

-- select_runs: Runs, newest first, of one state or agent where asked.
SELECT * FROM runs
WHERE (:state IS NULL OR state = :state) AND (:agent IS NULL OR agent = :agent)
ORDER BY run DESC LIMIT :limit;

-- select_unfinished: Runs that a governor that was started anew must take up or end.
SELECT * FROM runs WHERE state <> 'ended' ORDER BY run;

-- move_run: One step of the lifecycle, from the state it was decided in and from no other.
UPDATE runs SET state = :state WHERE run = :run AND state = :from_state;

-- note_started: The agent's command runs.
UPDATE runs SET started = :started WHERE run = :run;

-- note_ending: Why the run is ending; the first cause stands.
UPDATE runs SET cause = :cause, detail = :detail, status = :status WHERE run = :run AND cause = '';

-- note_ended: The run is over and its totals are final.
UPDATE runs SET ended = :ended, usage = :usage, held = :held, denied = :denied WHERE run = :run;

-- note_elapsed: How much of its wall clock the run has used, so that a governor that was started anew goes on counting.
UPDATE runs SET elapsed_seconds = :elapsed_seconds WHERE run = :run;

-- note_changes: What the run changed in its workspace, and the archive of it.
UPDATE runs SET changes = :changes, archive = :archive WHERE run = :run;

-- note_applied: An operator applied the changes to a directory.
UPDATE runs SET applied = :applied WHERE run = :run;
