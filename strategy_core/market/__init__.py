"""Candle sources, and the hours when markets are open."""
