"""The record: append-only events, hashed into an RFC 6962 Merkle tree, checkpointed by signed tree heads, provable offline.

An event's way: `client` (in its writer) -> `recorder` (the only process that writes) -> `commit` (checked, hashed, durable) -> acknowledged; within a
second `checkpointing` has the tree's head signed, by the broker, never here. `repository` reads; `export` takes away; `verify` proves, without us.
What is hashed is a `leaf`; what may stand in it is an `event`. There is no message that changes or removes an event; who appends is told by the kernel.

Never: a secret's value, a decision, a reaction. Who reacts to an event reads it above.
"""
