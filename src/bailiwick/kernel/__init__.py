"""The kernel: what every room needs and no room owns. Imports nothing of ours.

ids and clock; errors that name their culprit; limits (every wait, queue and size has one); secrets that have no text; canonical JSON; YAML with
positions; typed messages between our processes; accounts, confinement and seccomp of a process.

Never: a drawer for what found no other place. A thing lives here only when it has no noun of a room above.
"""
