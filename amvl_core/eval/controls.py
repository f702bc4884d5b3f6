"""Models without latents. They are asked the same items as the probes of a latent model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import collate
from amvl_core.data.encode import Encoder, laid_out
from amvl_core.eval.benchmarks.prepared import question_images
from amvl_core.eval.predict import Answerer
from amvl_core.methods.losses import token_losses
from amvl_core.methods.probing import ProbeAnswer, sums


class Control:
    """A model without latents on the same samples: one pass over [prompt, whatever stands there, reply]."""

    def __init__(self, answerer: Answerer, method: MethodConfig, latent: LatentConfig) -> None:
        self.answerer, self.latent = answerer, latent
        self.encoder = Encoder(answerer.processor)
        self.method = method.implementation()(answerer.model, method)

    @torch.inference_mode()
    def __call__(self, items: Sequence[StoredSample], label: str, max_new_tokens: int) -> list[ProbeAnswer]:
        """Its answers and log-likelihoods, under the name `label`."""
        images, questions = [question_images(item) for item in items], [item.question for item in items]
        texts = self.answerer.answer(images, questions, max_new_tokens, videos=[item.videos for item in items])
        batch = collate([laid_out(self.encoder, self.method.config, self.latent, item) for item in items])
        logits_NV, labels_N = self.method.logits(batch)
        sample_N = torch.arange(len(items)).repeat_interleave(torch.tensor(batch.label_counts)).to(labels_N.device)
        scores = sums(-token_losses(logits_NV, labels_N), sample_N, len(items))
        found = zip(items, texts, scores, strict=True)
        return [ProbeAnswer(item.sample_id, label, text, score) for item, text, score in found]
