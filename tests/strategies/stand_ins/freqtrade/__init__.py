"""A stand-in for freqtrade, which is not installed: what a strategy's module imports of it, and its base class."""
