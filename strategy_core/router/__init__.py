"""Routing in the platform's own process: answers from memory, without waiting for a database or a network."""
