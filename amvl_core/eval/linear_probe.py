"""Linear probes: what a linear classifier reads of each written step from what each slot holds. Needs no model.

For slot i and step j it learns the text of step j, on the test questions that have one, from the vector that stands in
slot i (`Prober.held`). It is ridge regression on one-hot labels. Each question is classified by a fit on the other
folds. The same from the state at the last token before the block says what is known without the slots.

Shape suffixes: N questions of a fit, M questions that it is asked, D features, C texts, R singular values.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import (
    CheckpointRecord,
    DatasetRecord,
    LinearProbeRecord,
    Place,
    StepProbe,
    save_record,
)
from amvl_core.eval.questions import Questions
from amvl_core.eval.stored import write_table

SLOTS = "slots"
"""The kind of part that gives what slots hold."""
FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-2, 6))
MAX_TEXTS = 64
"""A step with more different texts is no class to choose, and is left out."""


class LinearProbe:
    """What the slots of `model` hold on all test questions of `dataset`."""

    def __init__(self, dataset: DatasetRecord, model: CheckpointRecord, place: Place) -> None:
        dataset.check_test_split()
        self.model, self.place = model, place
        self.asked = Questions.of(dataset)
        self.name = f"linear probe {model.stage}"

    def parts(self, config: RunConfig) -> list[Part]:
        """All questions."""
        return self.asked.parts(SLOTS, config.evaluation)

    def finish(self, tables: Mapping[str, pa.Table]) -> LinearProbeRecord:
        """Fits the probes; writes `vectors.parquet`, from which they can be fitted again, and the record."""
        table = tables[SLOTS].sort_by("sample_id")
        steps, left_out = probed(
            np.array(table["prompt"].to_pylist()),
            np.array(table["slots"].to_pylist()),
            [json.loads(text) for text in table["steps"].to_pylist()],
            [
                group or name
                for group, name in zip(*(table[key].to_pylist() for key in ("group", "sample_id")), strict=True)
            ],
        )
        record = LinearProbeRecord(
            **self.place._asdict(),
            checkpoint=self.model.fingerprint,
            stage=self.model.stage,
            dataset=self.asked.dataset.fingerprint,
            steps=steps,
            left_out=left_out,
        )
        write_table(record.vectors_uri, table)
        save_record(record)
        return record


def probed(
    prompt_ND: np.ndarray, slots_NKD: np.ndarray, steps: Sequence[Sequence[str]], groups: Sequence[str]
) -> tuple[list[StepProbe], list[int]]:
    """A probe of each step from each slot, and the numbers of steps that cannot be probed.

    These have one text, more than `MAX_TEXTS`, or a fold without a question. Questions of one group are in one fold.
    """
    fold_N = np.array([fold(group) for group in groups])
    found: list[StepProbe] = []
    left_out: list[int] = []
    for step in range(max(map(len, steps), default=0)):
        has_N = np.array([len(written) > step for written in steps])
        texts = [written[step] for written in steps if len(written) > step]
        counts = Counter(texts)
        if not 1 < len(counts) <= MAX_TEXTS or len(set(fold_N[has_N])) < FOLDS:
            left_out.append(step + 1)
            continue
        label_N = np.unique(texts, return_inverse=True)[1]
        prompt, *slots = (
            accuracy(vector_ND[has_N], label_N, fold_N[has_N]) for vector_ND in (prompt_ND, *slots_NKD.swapaxes(0, 1))
        )
        majority = max(counts.values()) / len(texts)
        found.append(
            StepProbe(step=step + 1, n=len(texts), texts=len(counts), majority=majority, prompt=prompt, slots=slots)
        )
    return found, left_out


def fold(group: str) -> int:
    """The fold of a group. It follows from its name alone, so it is the same in every run."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % FOLDS


def accuracy(vector_ND: np.ndarray, label_N: np.ndarray, fold_N: np.ndarray) -> float:
    """The share of questions whose label a fit on the other folds gives."""
    right = 0
    for number in range(FOLDS):
        held_N = fold_N == number
        given_M = classified(vector_ND[~held_N], label_N[~held_N], vector_ND[held_N], int(label_N.max()) + 1)
        right += int((given_M == label_N[held_N]).sum())
    return right / len(label_N)


def classified(vector_ND: np.ndarray, label_N: np.ndarray, asked_MD: np.ndarray, classes: int) -> np.ndarray:
    """The class [M] of each of `asked_MD`.

    Of `PENALTIES` that one is taken which classifies most of N, each by a fit on the others; of equal ones the largest.
    """
    best, chosen_M = -1, np.zeros(len(asked_MD), int)
    for score_MC, left_out_NC in regressions(vector_ND, np.eye(classes)[label_N], asked_MD):
        if (right := int((left_out_NC.argmax(1) == label_N).sum())) >= best:
            best, chosen_M = right, score_MC.argmax(1)
    return chosen_M


def regressions(
    vector_ND: np.ndarray, target_NC: np.ndarray, asked_MD: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ridge regression of targets on standardised vectors, the intercept free, once for each of `PENALTIES`.

    Gives its values for `asked_MD`, [M, C], and what fits without each of N give that one, [N, C].
    """
    mean_D, scale_D = vector_ND.mean(0), vector_ND.std(0)
    scale_D[scale_D == 0] = 1
    left_NR, size_R, right_RD = np.linalg.svd((vector_ND - mean_D) / scale_D, full_matrices=False)
    level_C = target_NC.mean(0)
    inside_RC = left_NR.T @ (target_NC - level_C)
    asked_MR = (asked_MD - mean_D) / scale_D @ right_RD.T
    for penalty in PENALTIES:
        kept_R = size_R**2 / (size_R**2 + penalty)
        fitted_NC = level_C + (left_NR * kept_R) @ inside_RC
        leverage_N1 = (1 / len(vector_ND) + left_NR**2 @ kept_R)[:, None]
        left_out_NC = target_NC - (target_NC - fitted_NC) / (1 - leverage_N1)
        yield level_C + (asked_MR * (size_R / (size_R**2 + penalty))) @ inside_RC, left_out_NC
