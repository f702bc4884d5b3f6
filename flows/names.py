"""What Prefect calls a run of a flow."""

from prefect.runtime import flow_run

from amvl_core.contracts.errors import AmvlError
from flows.parameters import resolve
from infra.tracking import run_name


def flow_run_name() -> str:
    """Methods or table, data, seed and time, as MLflow calls the same run; the flow says what is wrong with others."""
    parameters = dict(flow_run.parameters)
    table, _ = parameters.pop("table", None), parameters.pop("seeds", None)
    try:
        return run_name(resolve(**parameters), "" if table is None else f"table {table}")
    except AmvlError:
        return "refused"
