"""Deployment of the flows: served from prefect.yaml, deployed for workers, or started by `rollout up`."""

from pathlib import Path


def prefect_yaml() -> Path:
    """Return prefect.yaml: inside this package if installed from a wheel, otherwise at the root of the checkout."""
    here = Path(__file__).parent
    installed = here / "prefect.yaml"
    return installed if installed.exists() else here.parent / "prefect.yaml"
