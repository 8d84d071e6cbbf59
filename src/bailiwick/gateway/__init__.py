"""The gateway: the policy enforcement point, and the only way out of a sandbox.

One action's way: bytes on a run's listener -> run (by socket) -> protocol layer -> Action -> critic.decide -> intent recorded (durable for effects)
-> lease -> inject -> upstream -> answer streamed back, scrubbed -> outcome recorded. `layers/` does no I/O; `server.py` does all of it.

Never: decide by a Host header, forward an effect without a durable intent, follow a redirect, hold a stored secret.
"""
