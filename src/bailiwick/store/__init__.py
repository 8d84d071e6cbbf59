"""The store: the one door to the database. Connections, migrations, named queries; SQLite today, PostgreSQL on the same door later.

A room that keeps something has `migrations/NNNN_{pre|post}_what.sql`, `queries.sql` (each statement named, with a sentence) and `schema.sql` (what the
migrations make, for people; a test compares). Only repositories (`*.repository`) and `app` may open it: `open_writer(path, "bailiwick.room")` for the
one process that writes, `open_reader` for the others, `transaction` around what belongs together, `queries.load` for the statements.
"""
