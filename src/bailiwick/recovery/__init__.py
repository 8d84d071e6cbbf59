"""Recovery: the ledger of pre-images and inverse actions, and the undoing of what a run did.

Empty until a version brings it. The gateway will call it between the durable intent and the lease.
"""
