"""The record: append-only events, hashed into an RFC 6962 Merkle tree, checkpointed by signed tree heads, provable offline.

The recorder process is the only writer; it acknowledges after the commit. Others append through `record.client`; nobody rewrites: there is no
message that changes or removes an event. Checkpoints are signed in the broker process, never here.

Never: a secret's value, a decision, a reaction. Who reacts to an event reads it above.
"""
