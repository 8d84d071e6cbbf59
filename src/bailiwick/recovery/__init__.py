"""Recovery: the ledger of pre-images and inverse actions, and the undoing of what a run did.

Empty until the issue that brings it. The gateway calls it between the durable intent and the lease (DESIGN, the way of one action).
"""
