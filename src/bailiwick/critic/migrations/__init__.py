"""Migrations of holds.db, the governor's database of holds: `NNNN_{pre|post}_what.sql`, see `bailiwick.store.migrations`."""
