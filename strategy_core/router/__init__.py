"""Routing in the platform's own process: answers from memory, and never waits for a database or a network."""
