"""Ask for the external metrics that gates of open rollouts judge."""

from prefect import flow

from flows.runtime import one_line, opened
from strategy_core.domain.errors import RolloutError
from strategy_core.services.sample import sample_metrics


@flow(flow_run_name="sample metrics")
@one_line
def sample_run() -> str:
    """Take one sample for each metric gate of each open rollout.

    A flow of its own, so that no tick waits for an endpoint. It fails at its end if some metric gave no value; that
    gate is blind until one does.
    """
    with opened() as runtime:
        sampled = sample_metrics(runtime.engine, runtime.settings.open_prometheus(), now=runtime.now)
    line = "; ".join(
        f"{each.strategy_name} {each.version} {each.gate}: {each.problem or f'{each.value:.6g}'}" for each in sampled
    )
    if any(each.problem for each in sampled):
        raise RolloutError(line)
    return line or "no open rollout has a metric gate"
