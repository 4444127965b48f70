"""Prefect flows: thin wrappers, each around one service."""
