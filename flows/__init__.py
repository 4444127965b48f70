"""The clock's side of the house: thin Prefect flows, each of which opens what it needs and calls one service."""
