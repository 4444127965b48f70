"""The history of the schema, one file a step; the same steps on SQLite and PostgreSQL."""
