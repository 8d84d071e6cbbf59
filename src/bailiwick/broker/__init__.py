"""The broker: credentials lent to a run for some hosts, verbs and time, and the key that signs checkpoints.

The broker process is the only one that can read a secret or sign. A lease is dead at its run's end, on containment, on demand and at expiry.

Never: a value in a log, an error, an event or a sandbox; a value for a run, host or verb its lease does not name.
"""
