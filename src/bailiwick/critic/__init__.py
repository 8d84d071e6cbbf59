"""The critic: the policy decision point. A boundary compiled to Cedar; an action in, Allow, Deny or Hold out; sign-off of what was held.

Deciding is pure: no I/O, no clock of its own, no state but what it is given. A rule that errs, a fact that is missing, no rule at all: Deny.

Never: loosen a Deny; forward, record or inject anything.
"""
