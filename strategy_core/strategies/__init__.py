"""Strategies in code: those built in, and how a version's entry point becomes one; never where they run."""
