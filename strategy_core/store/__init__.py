"""Tables and the queries on them. The services open and commit the transactions."""
