"""From the tables of an analysis to its numbers, and to what a figure is drawn from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from amvl_core.contracts.analysis import Columns, Tables
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.records import AnalysisRecord
from amvl_core.methods.amvl.analysis.geometry import (
    TABLE_7,
    Latents,
    active_units,
    geometry,
    kl_per_slot,
    slot_similarity,
    spread,
)


class Summary(Frozen):
    """Geometry and information of one checkpoint's latents on `n` test samples: the record's `numbers`.

    `geometry` holds Table 7's quantities and their centred versions; `kl_per_slot` is KL(q||p) in nats, one per slot.
    `mutual_information` and `mutual_information_upper` bound I_q(Z; Y | X) in nats (Prop. C.5) with the targets of
    `candidates` samples of a task as the answers; the lower one cannot exceed log(candidates). `sensitivity` says how
    far the latents move when `image` or `text` is permuted, in distances of a sample to the centre; NaN is left out.
    """

    n: int
    geometry: dict[str, float]
    kl_per_slot: list[float]
    active_units: int
    mutual_information: float
    mutual_information_upper: float
    candidates: float
    similarity: list[list[float]]
    sensitivity: dict[str, float]

    @classmethod
    def of(cls, record: AnalysisRecord) -> Summary:
        """As the record keeps it."""
        return cls.model_validate(record.numbers)

    @classmethod
    def compute(cls, tables: Tables, slots: int) -> Summary:
        """Without a task of two samples there is no information to estimate: 0 candidates."""
        read = latents(tables["latents"], slots)
        bounds = tables.get("information")
        means = {
            name: float(np.mean(bounds[name].to_numpy())) if bounds is not None else 0.0
            for name in ("lower", "upper", "candidates")
        }
        shifts = sensitivity(tables["latents"], slots)
        return cls(
            n=tables["latents"].num_rows,
            geometry=geometry(read),
            kl_per_slot=kl_per_slot(read).tolist(),
            active_units=active_units(read),
            mutual_information=means["lower"],
            mutual_information_upper=means["upper"],
            candidates=means["candidates"],
            similarity=slot_similarity(read.prior_mean).tolist(),
            sensitivity={kind: float(np.mean(values)) for kind, values in shifts.items()},
        )


def latents(table: pa.Table, slots: int) -> Latents:
    """The distributions, [N, K, Z] each, in float64."""
    names = ("prior_mean", "prior_logvar", "posterior_mean", "posterior_logvar")
    return Latents(*(_array(table, name).reshape(table.num_rows, slots, -1) for name in names))


def sensitivity(table: pa.Table, slots: int) -> dict[str, list[float]]:
    """Shift of each slot under a permuted image or text, mean over samples, in units of the slot's spread.

    A kind that no sample has is left out.
    """
    unit_K = spread(latents(table, slots).prior_mean)
    found = {}
    for kind in ("image", "text"):
        shift_NK = _array(table, f"{kind}_shift")
        if not np.isnan(shift_NK).all():
            found[kind] = [float(value) for value in np.nanmean(shift_NK, 0) / np.maximum(unit_K, 1e-12)]
    return found


def heat(table: pa.Table) -> list[tuple[str, np.ndarray]]:
    """The heat map of each sample, by its name."""
    return [(row["sample_id"], np.array(row["shift"]).reshape(row["shape"])) for row in table.to_pylist()]


def data(found: Summary, tables: Tables, name: str) -> Columns:
    """The numbers behind a figure as columns."""
    slots = [str(number) for number in range(1, len(found.kl_per_slot) + 1)]
    if name == "geometry":
        rows = {**{f"{model} (paper)": values for model, values in TABLE_7.items()}, "ours": found.geometry}
        return {"model": list(rows), **{c: [row.get(c) for row in rows.values()] for c in found.geometry}}
    if name == "similarity":
        return {"slot": slots, **{slot: [row[i] for row in found.similarity] for i, slot in enumerate(slots)}}
    if name == "sensitivity":
        return {"slot": slots, **sensitivity(tables["latents"], len(slots))}
    if name == "information":
        quantities = {
            "KL(q || p)": sum(found.kl_per_slot),
            "I_q(Z; Y | X), at least": found.mutual_information,
            "I_q(Z; Y | X), at most": found.mutual_information_upper,
            "log of the candidate answers": float(np.log(found.candidates)) if found.candidates else 0.0,
            "active units": float(found.active_units),
            **{f"KL(q || p), slot {slot}": kl for slot, kl in zip(slots, found.kl_per_slot, strict=True)},
        }
        return {"quantity": list(quantities), "value": list(quantities.values())}
    cells = [
        (sample, *at, value) for sample, map_HWK in heat(tables["occlusion"]) for at, value in np.ndenumerate(map_HWK)
    ]
    return {
        "sample_id": [cell[0] for cell in cells],
        "row": [cell[1] for cell in cells],
        "column": [cell[2] for cell in cells],
        "slot": [cell[3] + 1 for cell in cells],
        "shift": [float(cell[4]) for cell in cells],
    }


def _array(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float64)
