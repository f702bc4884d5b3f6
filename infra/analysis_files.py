"""What an analysis leaves behind: tables, the numbers of its record, and figures drawn from the stored tables alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from amvl_core.contracts import storage
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.records import AnalysisRecord
from amvl_core.data.pixels import decode
from amvl_core.methods.amvl.analysis.geometry import (
    TABLE_7,
    Latents,
    active_units,
    geometry,
    kl_per_slot,
    slot_similarity,
    spread,
)
from infra.reports import figures

Tables = dict[str, pa.Table]
KINDS = ("latents", "information", "occlusion")


def write_table(uri: str, table: pa.Table) -> None:
    """Writes a Parquet file whole."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def read_tables(record: AnalysisRecord) -> Tables:
    """The stored tables by kind; a kind that had nothing to do is not there."""
    kinds = [kind for kind in KINDS if f"{kind}.parquet" in record.files]
    read = {kind: storage.read_bytes(storage.join(record.uri, f"{kind}.parquet")) for kind in kinds}
    return {kind: ParquetStream(data).read() for kind, data in read.items()}


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


def summary(tables: Tables, slots: int) -> dict[str, Any]:
    """The numbers of the record. Without a task of two samples there is no information to estimate: 0 candidates."""
    read = latents(tables["latents"], slots)
    bounds = tables.get("information")
    means = {
        name: float(np.mean(bounds[name].to_numpy())) if bounds is not None else 0.0
        for name in ("lower", "upper", "candidates")
    }
    return {
        "n": tables["latents"].num_rows,
        "geometry": geometry(read),
        "kl_per_slot": kl_per_slot(read).tolist(),
        "active_units": active_units(read),
        "mutual_information": means["lower"],
        "mutual_information_upper": means["upper"],
        "candidates": means["candidates"],
        "similarity": slot_similarity(read.prior_mean).tolist(),
        "sensitivity": {kind: float(np.mean(values)) for kind, values in sensitivity(tables["latents"], slots).items()},
    }


def draw(record: AnalysisRecord) -> dict[str, Figure]:
    """The figures by name, from the record and the tables beside it; one with nothing to show is not there."""
    tables, slots = read_tables(record), len(record.kl_per_slot)
    read = latents(tables["latents"], slots)
    found = {
        "geometry": figures.geometry_chart(read.prior_mean.mean(1), read.posterior_mean.mean(1)),
        "similarity": figures.similarity_chart(record.similarity),
        "information": figures.slots_chart({"KL": record.kl_per_slot}, "KL(q || p), nats"),
    }
    if shifts := sensitivity(tables["latents"], slots):
        named = {f"{kind} permuted": values for kind, values in shifts.items()}
        found["sensitivity"] = figures.slots_chart(named, "shift of the latent / its spread over samples")
    if "occlusion" in tables:
        rows = tables["occlusion"].to_pylist()
        found["occlusion"] = figures.heat_maps(
            [decode(row["image"]) for row in rows],
            [f"{row['question'].replace('<image>', '').strip()} {row['answer']}" for row in rows],
            [np.array(row["shift"]).reshape(row["shape"]) for row in rows],
        )
    return found


def write_figures(record: AnalysisRecord) -> list[str]:
    """Writes every figure as PNG below the record's `uri`; the names of the files."""
    names = []
    for name, figure in draw(record).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        storage.write_bytes(storage.join(record.uri, f"{name}.png"), buffer.getvalue())
        names.append(f"{name}.png")
    return names


def data(record: AnalysisRecord, name: str) -> dict[str, list[Any]]:
    """The numbers behind a figure as columns."""
    slots = [str(number) for number in range(1, len(record.kl_per_slot) + 1)]
    if name == "geometry":
        columns = list(record.geometry)
        rows = {**{f"{model} (paper)": values for model, values in TABLE_7.items()}, "ours": record.geometry}
        return {"model": list(rows), **{c: [row.get(c) for row in rows.values()] for c in columns}}
    if name == "similarity":
        return {"slot": slots, **{slot: [row[i] for row in record.similarity] for i, slot in enumerate(slots)}}
    tables = read_tables(record)
    if name == "sensitivity":
        return {"slot": slots, **sensitivity(tables["latents"], len(slots))}
    if name == "information":
        return {
            "quantity": [
                "KL(q || p)",
                "I_q(Z; Y | X), at least",
                "I_q(Z; Y | X), at most",
                "log of the candidate answers",
                "active units",
                *(f"KL(q || p), slot {slot}" for slot in slots),
            ],
            "value": [
                sum(record.kl_per_slot),
                record.mutual_information,
                record.mutual_information_upper,
                float(np.log(record.candidates)) if record.candidates else 0.0,
                float(record.active_units),
                *record.kl_per_slot,
            ],
        }
    maps = [(row["sample_id"], np.array(row["shift"]).reshape(row["shape"])) for row in tables["occlusion"].to_pylist()]
    cells = [(name, *at, value) for name, map_HWK in maps for at, value in np.ndenumerate(map_HWK)]
    return {
        "sample_id": [cell[0] for cell in cells],
        "row": [cell[1] for cell in cells],
        "column": [cell[2] for cell in cells],
        "slot": [cell[3] + 1 for cell in cells],
        "shift": [float(cell[4]) for cell in cells],
    }


def _array(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float64)
