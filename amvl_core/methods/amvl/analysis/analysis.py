"""What AMVL measures of its latents: Table 7, Figures 3 and 4, and the information of Prop. C.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from amvl_core.contracts.analysis import Columns, Item, Study, Tables
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import AnalysisRecord
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER
from amvl_core.methods.amvl.analysis import summary
from amvl_core.methods.amvl.analysis.contamination import Contamination
from amvl_core.methods.amvl.analysis.geometry import TABLE_7
from amvl_core.methods.amvl.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 16
"""Samples of one part."""
INFORMATION_CHUNKS = 16
"""Groups of at most CHUNK samples of one task, each sample's question read with each one's answer."""
HEAT_MAPS = 4


class AmvlAnalysis:
    """Parts of three kinds, which `parts.py` runs: `latents`, `information` and `occlusion`."""

    figures: ClassVar[Mapping[str, str]] = {
        "geometry": "Table 7, as it is and centred",
        "similarity": "Figure 4, left: cosine between slots",
        "sensitivity": "Figure 4, right: image against text",
        "information": "KL per slot, active units, I_q(Z; Y | X) of Prop. C.5",
        "occlusion": "Figure 3: heat maps",
    }
    studies: ClassVar[Mapping[str, tuple[str, Study]]] = {
        "contamination": (
            "Prop. C.1, C.4: leakage against gamma; of a linear-Gaussian problem where no checkpoint is given",
            Contamination(),
        )
    }
    compared: ClassVar[str] = (
        "Table 7, geometry of the latents: ours, mean over seeds (paper). Scales differ with the width of the "
        "latents; `D_L2` against `D_shift`, and the cosine, can be compared."
    )

    def parts(self, items: Sequence[Item]) -> list[Part]:
        """All samples for the latents, groups of one task for the information, the first images for heat maps."""
        rows = [item.row for item in items]
        chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
        shown = [item.row for item in items if item.images][:HEAT_MAPS]
        return [
            *(Part("latents", tuple(chunk), len(chunk)) for chunk in chunks),
            *(Part("information", tuple(group), len(group)) for group in _groups(items)[:INFORMATION_CHUNKS]),
            *(Part("occlusion", (row,), CHUNK) for row in shown),  # one sample is run once for each of its cells
        ]

    def numbers(self, tables: Tables, latent: LatentConfig) -> dict[str, Any]:
        """A `Summary`."""
        return Summary.compute(tables, latent.num_slots).model_dump()

    def metrics(self, record: AnalysisRecord) -> dict[str, float]:
        """Table 7's quantities, KL, information, active units and sensitivity."""
        found = Summary.of(record)
        return {
            **{f"geometry/{name}": value for name, value in found.geometry.items()},
            **{f"kl_slot/{slot}": kl for slot, kl in enumerate(found.kl_per_slot, 1)},
            **{f"sensitivity/{kind}": value for kind, value in found.sensitivity.items()},
            "information/lower": found.mutual_information,
            "information/upper": found.mutual_information_upper,
            "active_units": found.active_units,
            "kl": sum(found.kl_per_slot),
        }

    def compare(self, record: AnalysisRecord) -> dict[str, float]:
        """Table 7's quantities."""
        return Summary.of(record).geometry

    def draw(self, record: AnalysisRecord, tables: Tables) -> dict[str, Figure]:
        """From the stored tables alone."""
        from amvl_core.data.pixels import decode
        from amvl_core.methods.amvl.analysis import charts

        numbers = Summary.of(record)
        slots = len(numbers.kl_per_slot)
        read = summary.latents(tables["latents"], slots)
        found = {
            "geometry": charts.geometry_chart(read.prior_mean.mean(1), read.posterior_mean.mean(1)),
            "similarity": charts.similarity_chart(numbers.similarity),
            "information": charts.slots_chart({"KL": numbers.kl_per_slot}, "KL(q || p), nats"),
        }
        if shifts := summary.sensitivity(tables["latents"], slots):
            named = {f"{kind} permuted": values for kind, values in shifts.items()}
            found["sensitivity"] = charts.slots_chart(named, "shift of the latent / its spread over samples")
        if "occlusion" in tables:
            rows = tables["occlusion"].to_pylist()
            found["occlusion"] = charts.heat_maps(
                [decode(row["image"]) for row in rows],
                [f"{row['question'].replace(IMAGE_PLACEHOLDER, '').strip()} {row['answer']}" for row in rows],
                [map_HWK for _, map_HWK in summary.heat(tables["occlusion"])],
            )
        return found

    def data(self, record: AnalysisRecord, tables: Tables, name: str) -> Columns:
        """Of one figure."""
        return summary.data(Summary.of(record), tables, name)

    def section(self, record: AnalysisRecord) -> str:
        """Geometry beside the paper's, and information; the similarity of slots is a figure."""
        from amvl_core.pages import render

        found, paper = Summary.of(record), TABLE_7["AMVL"]
        geometry = [
            {"": "ours", **{name: f"{value:.4g}" for name, value in found.geometry.items()}},
            {
                "": "paper, AMVL (7B)",
                **{name: f"{paper[name]:.4g}" if name in paper else "-" for name in found.geometry},
            },
        ]
        facts = {
            "questions": f"{found.n:,}",
            "active units": f"{found.active_units:,}",
            "I_q(Z; Y | X), nats": f"{found.mutual_information:.4g} to {found.mutual_information_upper:.4g}",
            "bounded with answers": f"{found.candidates:.4g}",
            **{f"sensitivity, {name}": f"{value:.4g}" for name, value in found.sensitivity.items()},
            **{f"KL(q || p), slot {i}, nats": f"{kl:.4g}" for i, kl in enumerate(found.kl_per_slot, 1)},
        }
        template = Path(__file__).parent / "section.html"
        return render(template, geometry=geometry, facts=facts)


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Groups of at most CHUNK rows of one task, and of at least two; one of each task first."""
    by_task: dict[str, list[int]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item.row)
    groups = [
        (start, task, rows[start : start + CHUNK])
        for task, rows in sorted(by_task.items())
        for start in range(0, len(rows), CHUNK)
    ]
    return [rows for _, _, rows in sorted(groups, key=lambda group: group[:2]) if len(rows) > 1]
