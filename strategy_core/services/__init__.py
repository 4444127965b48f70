"""Use cases: what flows, API, command line and SDK call. Each change of a strategy is one transaction."""
