"""What requests and answers of the HTTP API look like; no table is one of them, and none of them is a table."""
