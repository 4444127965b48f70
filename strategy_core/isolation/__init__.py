"""Versions' code in a process of its own: what it may do, how long, and whether it is fit; never what it means."""
