"""`python -m tests.flows.tiny_experiment` runs an experiment of a few steps in the working directory, twice."""

from flows.environment import set_up

set_up()

from amvl_core.contracts.config import override  # noqa: E402
from amvl_core.experiments import EXPERIMENTS  # noqa: E402
from amvl_core.experiments.experiment import Arm, Experiment  # noqa: E402
from amvl_core.experiments.shared import questions, shared, stage  # noqa: E402
from amvl_core.methods.coconut.config import CoconutMethod  # noqa: E402
from amvl_core.methods.sft.config import SftMethod  # noqa: E402
from flows.experiment import experiment  # noqa: E402
from flows.servers import prefect_api  # noqa: E402


def tiny() -> Experiment:
    """Two arms of two steps."""
    config = override(shared((1, 2), train=32, test=8, steps=2), {"latent": {"num_slots": 2}})
    config = override(config, {"data": {"accept_losses": True}, "stages": {"steps": {"global_batch": 8}}})
    arms = (
        Arm("bare", "control", {"bare": stage(SftMethod(replaced_steps=None), 2, global_batch=8)}),
        Arm("Coconut", "latent", {"coconut": stage(CoconutMethod(), 2, global_batch=8)}),
    )
    return Experiment("Tiny", config, arms, (1e-3, 2e-3), arms, questions((1, 2), train=8, test=4, seed=1), seeds=1)


if __name__ == "__main__":
    EXPERIMENTS["tiny"] = tiny
    prefect_api().wait()
    for _ in range(2):
        experiment("tiny")
