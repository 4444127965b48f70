"""The rules as pure functions and values. `now` is an argument, and every other layer may import this one."""
