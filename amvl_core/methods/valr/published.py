"""The scores that the paper prints, in per cent, under the names of our benchmarks and metrics (arXiv 2602.04476)."""

from __future__ import annotations

from statistics import fmean

from amvl_core.contracts.method import Published

BASE, SFT, NO_ALIGNMENT = "Qwen2.5-VL-7B", "SFT", "VaLR, no alignment"
OWN_ENCODER, SINGLE, MULTIPLE = "VaLR, Qwen's own encoder", "VaLR-S", "VaLR-M"

_VSI_TASKS = (
    *("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation"),
    *("object_rel_distance", "object_rel_direction", "route_planning", "obj_appearance_order"),
)
_VSI_BENCH = {
    BASE: (33.0, 40.9, 14.8, 43.4, 20.7, 38.6, 38.5, 33.0, 29.8),
    SFT: (33.7, 42.3, 14.7, 44.1, 20.8, 39.4, 34.7, 32.5, 33.5),
    "LVR": (18.4, 21.4, 3.6, 1.4, 9.0, 35.1, 30.9, 32.0, 23.1),
    "CoVT": (18.6, 16.5, 2.3, 1.0, 7.3, 35.9, 33.0, 25.8, 30.4),
    "Monet": (14.0, 1.9, 0.1, 0.0, 0.0, 38.0, 20.5, 24.2, 31.2),
    SINGLE: (41.5, 49.0, 24.5, 53.9, 38.2, 43.9, 41.9, 34.0, 39.2),
    MULTIPLE: (52.9, 66.4, 40.6, 64.2, 56.6, 50.0, 51.8, 35.1, 48.9),
}
"""The printed average, then the tasks. The average is question-weighted, except that the base's fits no mean."""

_VSI = {
    # Not printed: the benchmark's own mean, of the eight tasks as printed.
    "overall": {model: round(fmean(scores[1:]), 2) for model, scores in _VSI_BENCH.items()},
    "question-weighted": {model: scores[0] for model, scores in _VSI_BENCH.items()},
    **{
        task: {model: scores[column] for model, scores in _VSI_BENCH.items()}
        for column, task in enumerate(_VSI_TASKS, start=1)
    },
}

PUBLISHED: Published = {
    "vsi_bench": _VSI,
    "vsi_bench_vlmevalkit": _VSI,
    "blink": {
        "overall": {BASE: 55.7, SFT: 56.6, NO_ALIGNMENT: 57.1, OWN_ENCODER: 58.9, SINGLE: 63.1, MULTIPLE: 64.7},
    },
    "mmvp": {
        # Shares of the 300 questions: 60.3 is none of the 150 pairs.
        "question": {BASE: 56.0, SFT: 58.7, NO_ALIGNMENT: 56.7, OWN_ENCODER: 60.0, SINGLE: 60.3, MULTIPLE: 60.3},
    },
    "mmstar": {"overall": {SFT: 67.5, SINGLE: 70.8, MULTIPLE: 72.3}},
    "vstar": {
        "overall": {BASE: 76.4, SFT: 78.0, NO_ALIGNMENT: 75.9, OWN_ENCODER: 81.7, SINGLE: 86.4, MULTIPLE: 86.9},
    },
    "cv_bench": {"overall": {BASE: 74.5, SFT: 77.0, SINGLE: 83.1, MULTIPLE: 87.6}},
}
