"""The critic: the policy decision point. A boundary compiled to Cedar; an action in, Allow, Deny or Hold out; sign-off of what was held.

Deciding is pure: no I/O, no clock of its own, no state but what it is given. A rule that errs, a fact that is missing, no rule at all: Deny.

What an operator writes: `rules` (the configuration's), `policyfile` (policies/*.cedar), both over `pattern` (hosts and paths). `boundary` compiles
them, `evaluate` decides an `action` by the result and gives a `decision`. `budget` counts. `signoff` is the table of a hold's life, `repository`
keeps it, `visible` is how anything of an agent's is shown to a person. `enforcement` is what governor and gateway say to each other about all this.

Never: loosen a Deny; forward, record or inject anything; show an approver less than what is signed.
"""
