"""Which tokens may come next in a reply with latent blocks.

Shape suffixes: B samples, T columns, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from amvl_core.methods.feedback.modeling import FeedbackConfig

LatentMode = Literal["written", "first_step", "every_step", "never"]


class LatentRules(LogitsProcessor):
    """Which tokens may come next, from the token ids alone; see `FeedbackForConditionalGeneration.generate`."""

    def __init__(self, config: FeedbackConfig, prompt_columns: int, mode: str, steps: int) -> None:
        if mode not in get_args(LatentMode):
            raise ValueError(f"latent_mode is {mode!r}; it is one of {', '.join(get_args(LatentMode))}")
        if steps < 0:
            raise ValueError(f"latent_steps is {steps}; a block has 0 or more slots")
        if mode == "every_step" and not config.line_end_token_ids:
            raise ValueError("latent_mode every_step needs line_end_token_ids in the model's configuration")
        self.config, self.prompt_columns, self.mode, self.steps = config, prompt_columns, mode, steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` [B, V] with what must not follow `input_ids` [B, T] at minus infinity, a forced token at 0."""
        c = self.config
        scores = scores.clone()
        scores[:, c.slot_token_id] = scores[:, c.block_end_token_id] = -torch.inf
        written_B = (input_ids[:, self.prompt_columns :] == c.block_start_token_id).sum(1)
        allowed_B = (written_B < c.max_blocks) & (self.mode != "never")
        scores[:, c.block_start_token_id] = scores[:, c.block_start_token_id].where(allowed_B, -torch.inf)
        forced_B = self._forced(input_ids, allowed_B)
        forced_B1 = forced_B[:, None]
        if (forced_B1 >= 0).any():
            only = torch.full_like(scores, -torch.inf).scatter(1, forced_B1.clamp_min(0), 0.0)
            scores = only.where(forced_B1 >= 0, scores)
        return scores

    def _forced(self, ids_BT: Tensor, allowed_B: Tensor) -> Tensor:
        """The token that must come next in each row, -1 where there is none."""
        c, (rows, columns) = self.config, ids_BT.shape
        free_B = ids_BT.new_full((rows,), -1)
        last_B = ids_BT[:, -1] if columns else free_B  # none where the prompt came as embeddings
        starts_B, in_slots_B = last_B == c.block_start_token_id, last_B == c.slot_token_id
        run_BS = ids_BT[:, max(columns - self.steps, 0) :] == c.slot_token_id
        full_B = run_BS.all(1) & (self.steps <= columns)
        slot_B = starts_B & (self.steps > 0) | in_slots_B & ~full_B
        end_B = starts_B & (self.steps == 0) | in_slots_B & full_B
        open_B = self._opens(ids_BT, last_B) & allowed_B & ~starts_B & ~in_slots_B
        forced_B = free_B.masked_fill(open_B, c.block_start_token_id)
        return forced_B.masked_fill(slot_B, c.slot_token_id).masked_fill(end_B, c.block_end_token_id)

    def _opens(self, ids_BT: Tensor, last_B: Tensor) -> Tensor:
        """Where the mode wants a block next."""
        first_B = (last_B != self.config.block_end_token_id) & (ids_BT.shape[1] == self.prompt_columns)
        if self.mode == "first_step":
            return first_B
        if self.mode == "every_step":
            ends = torch.tensor(self.config.line_end_token_ids, device=last_B.device)
            return first_B | (torch.isin(last_B, ends) & (ids_BT.shape[1] > self.prompt_columns))
        return torch.zeros_like(first_B)
