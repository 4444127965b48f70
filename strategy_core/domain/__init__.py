"""The rules, pure: no clock, no database, no network; `now` is an argument and nothing of ours is imported."""
