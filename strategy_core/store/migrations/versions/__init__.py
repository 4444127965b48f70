"""One migration a file, in the order they run."""
