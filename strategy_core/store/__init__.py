"""Tables and the queries on them; never commits: a service's transaction does."""
