"""Training of `ppo_gold`: `python -m strategy_core.training --candles FILE --until DATE --out MODEL.json`."""
