"""How the flows are put to work: served from prefect.yaml, or all at once by `rollout up`."""
