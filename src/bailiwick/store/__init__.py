"""The store: the one door to the database. Connections, migrations, named queries; SQLite today, PostgreSQL on the same door later.

Only repositories (`*.repository`) and `app` may open it. Every query is a named statement in a room's `queries.sql`.
"""
