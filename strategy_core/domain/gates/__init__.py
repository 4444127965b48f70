"""Gates: each turns the evidence of a rollout into a verdict with a reason."""
