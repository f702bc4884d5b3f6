"""Leakage against gamma (Prop. C.1, C.4): of real checkpoints that differ in gamma alone, or where it can be solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from amvl_core.contracts.analysis import Columns, Drawn, Measured
from amvl_core.contracts.config import flatten, validate
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.records import SWAPPED, UNCHANGED, CheckpointRecord, VariantScore
from amvl_core.methods.amvl.analysis.summary import Summary

GAMMAS = [0.1 * i for i in range(21)]


class Contamination:
    """The study `contamination`."""

    def check(self, models: Sequence[CheckpointRecord]) -> None:
        """Checkpoints that are drawn against gamma differ in `gamma_max` of their AMVL stages, and in nothing else.

        Raises DataError that names the fields in which one of them differs from the first.
        """
        first = trained(models[0])
        for model in models[1:]:
            other = trained(model)
            same_data = model.dataset == models[0].dataset
            odd = [
                f"{name} ({first.get(name, 'not there')}, {other.get(name, 'not there')})"
                for name in dict.fromkeys([*first, *other])
                if first.get(name) != other.get(name) and not (same_data and name.startswith("data."))
            ]
            if odd:
                raise DataError(
                    f"{models[0].uri} and {model.uri} differ in more than gamma_max: {', '.join(odd)}; give "
                    "checkpoints that are alike in everything else"
                )

    def draw(self, measured: Sequence[Measured]) -> Drawn:
        """Without checkpoints, of the linear-Gaussian problem."""
        return measurable(measured) if measured else linear_gaussian()


def gamma(model: CheckpointRecord) -> float:
    """The weight of the reverse KL after its warm-up that the checkpoint was trained with."""
    return float(model.config["stages"][model.stage]["method"]["gamma_max"])


def trained(model: CheckpointRecord) -> dict[str, str]:
    """What a checkpoint depends on by dotted path, but for `gamma_max`: not how the same steps are computed."""
    config = validate(model.config)
    names = list(config.stages)
    stages = names[: names.index(model.stage) + 1]
    fields = {
        name: value
        for name, value in flatten(config.model_copy(update={"stages": {n: config.stages[n] for n in stages}})).items()
        if (
            name.split(".")[0] in ("seed", "data", "model", "latent", "stages")
            or name in ("trainer.precision", "heldout.samples")
        )
        and not name.endswith((".gamma_max", ".micro_tokens"))
    }
    return {"dataset": model.dataset, "stage": model.stage, **fields}


def linear_gaussian() -> Drawn:
    """Prop. C.1 and C.4 where they can be solved by hand: the closed form, and descent on our own objectives."""
    from amvl_core.methods.amvl.analysis import charts
    from amvl_core.methods.amvl.analysis.leakage import Problem, closed_form, optimised

    problem, sharp = Problem(), Problem(sigma=Problem().sigma / 2)
    closed = [closed_form(problem, gamma) for gamma in GAMMAS]
    found = [optimised(problem, gamma) for gamma in GAMMAS[::4]]
    sharper = [closed_form(sharp, gamma) for gamma in GAMMAS]
    kinds = {"closed form": closed, "optimised": found, "closed form, sharper posterior": sharper}
    rows = [{"kind": kind, **asdict(point)} for kind, points in kinds.items() for point in points]
    return charts.contamination_chart(closed, found, sharper), {key: [row[key] for row in rows] for key in rows[0]}


def measurable(measured: Sequence[Measured]) -> Drawn:
    """What can be measured of a real model's leakage at each gamma.

    mu^(x), the mean that knows x alone, is not known there; so: KL(q || p), I_q(Z; Y | X), and what the posterior's
    latents tell of the answer beyond the prior's. `NAME_low` and `NAME_high` are the 95 % interval of NAME over `n`
    questions; KL and I_q are means over `n of KL and I_q` without one.
    """
    from amvl_core.methods.amvl.analysis import charts

    rows: list[dict[str, float]] = []
    for model, faithful, analysed in sorted(measured, key=lambda entry: gamma(entry[0])):
        by_name, found = {row.variant: row for row in faithful.rows}, Summary.of(analysed)
        prior, oracle, swapped = (by_name[name] for name in (UNCHANGED, "posterior", SWAPPED))
        rows.append(
            {
                "gamma": gamma(model),
                "seed": int(model.config["seed"]),
                "n": prior.n,
                "n of KL and I_q": found.n,
                "KL(q || p), nats": sum(found.kl_per_slot),
                "I_q(Z; Y | X) at least, nats": found.mutual_information,
                **_likelihood("log-likelihood with posterior - with prior latents, nats", oracle),
                **_likelihood("log-likelihood with swapped - with own latents, nats", swapped),
                **_accuracy("accuracy with prior latents", prior),
                **_accuracy("accuracy with posterior latents", oracle),
            }
        )
    columns: Columns = {key: [row[key] for row in rows] for key in rows[0]}
    about = ("seed", "n", "n of KL and I_q")
    seeds, counts, fewer = (", ".join(map(str, dict.fromkeys(columns[name]))) for name in about)
    title = f"n = {counts} (KL and I_q: {fewer}), 95 % intervals over questions, seed {seeds}"
    drawn = {name: values for name, values in columns.items() if name not in about}
    return charts.lines_chart("gamma", drawn, title), columns


def _likelihood(name: str, row: VariantScore) -> dict[str, float]:
    """The difference to the unchanged model, in nats, with its interval."""
    low, high = row.log_likelihood_difference_low, row.log_likelihood_difference_high
    return {name: row.log_likelihood_difference, f"{name}_low": low, f"{name}_high": high}


def _accuracy(name: str, row: VariantScore) -> dict[str, float]:
    return {name: row.accuracy, f"{name}_low": row.low, f"{name}_high": row.high}
