"""How the product is watched: logs; never on the path of a decision."""
