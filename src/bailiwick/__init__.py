"""Bailiwick: a sealed sandbox around any agent, and one gateway that decides, records and can stop what it does.

The rooms, top to bottom; a room imports only rooms below it (`lint-imports` checks, `docs/explanation/architecture.md` draws it):
cli, app, api, incidents, gateway | governor, broker | sandbox | recovery, critic | trust, record, store, kernel.
"""

__version__ = "0.1.0"
