"""Terminal front: a client of the API, plus init, check, up, run and demo. Commands import what they need when they run, so that help is fast.

entry (the program, and where an error becomes a line and an exit status); exits; terminal (what a person sees: nothing a peer wrote reaches a terminal
unescaped); client (HTTP over the unix socket); events (one line for each event); follow and live (a run as it happens); changeset (changes of a run
into a directory, all or nothing); command_* (the commands, by noun).

Always: standard output is what was asked for, everything else goes to standard error. Never: a traceback, unless BAILIWICK_DEBUG is set.
"""


def main() -> None:
    from bailiwick.cli.entry import application

    application()
