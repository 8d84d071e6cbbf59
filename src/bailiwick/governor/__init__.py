"""The governor: the life of a run, from request to cleaned-up end, and the heartbeat without which nothing goes on.

The lifecycle is a table; every side effect follows a transition that is on file. One layer above containment: never in the data path.
"""
