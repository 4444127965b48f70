"""How the flows are deployed: served from prefect.yaml, or all at once by `rollout up`."""

from pathlib import Path


def prefect_yaml() -> Path:
    """Return prefect.yaml: at the root of a checkout, inside this package where a wheel was installed."""
    here = Path(__file__).parent
    installed = here / "prefect.yaml"
    return installed if installed.exists() else here.parent / "prefect.yaml"
