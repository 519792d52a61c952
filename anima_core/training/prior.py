"""Prior preservation: the base model, which is the model with its network switched off, says what is to stay.

Outside of a mask the target is its velocity for the same x_t, t and text: OneTrainer's masked prior preservation, which
ai-toolkit calls inverted mask prior. For a caption of the class it is its velocity for that caption: ai-toolkit's differential
output preservation, and of an empty caption its blank prompt preservation.

What can be cached once is cached, the class captions' text embeddings. A base velocity belongs to its noise and t, which are
new in every step, so it is made in the step, without gradient and before the pass with one: that pass takes most memory still.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..data.embeddings import TextEmbeddings
from ..models.transformer import AnimaTransformer
from ..settings import TrainConfig
from . import flow
from .feed import Batch


class Prior:
    """Adds to the micro-batches of a run what the base model says of them."""

    def __init__(
        self, config: TrainConfig, model: AnimaTransformer, network: AdapterNetwork, embeddings: TextEmbeddings
    ) -> None:
        self.config, self.model, self.network, self.embeddings = config, model, network, embeddings

    def terms(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield each micro-batch, on the device, and behind it one of its class captions, where any of its pictures has one.

        Each is to have a backward pass of its own, so that never more is kept for it than of one. Their losses add up.
        """
        for batch in (batch.to(self.model.device) for batch in batches):
            masked = self.config.prior.masked > 0 and batch.mask is not None
            yield replace(batch, base=self.velocity(batch)) if masked else batch
            if batch.class_weight is not None:
                yield self.of_class(batch, batch.class_weight)

    def of_class(self, batch: Batch, weight: Tensor) -> Batch:
        """Return a micro-batch of the class captions, which is to answer what the base model does. weight: [B], 1 or 0."""
        weight = weight * batch.weight * self.config.prior.weight
        asked = replace(batch, text=batch.class_text, mask=None, weight=weight, class_text={}, class_weight=None)
        return replace(asked, target=self.velocity(asked))

    @torch.no_grad()
    def velocity(self, batch: Batch) -> Tensor:
        """Return the base model's velocity, [B, 16, h, w] fp32. A trained LLM adapter is switched off as well."""
        with self.network.disabled():
            return self.model(batch.noisy, batch.t, *self.embeddings.place(batch.text))


def with_kept(loss: Tensor, velocity: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    """Add to the losses [B] of a micro-batch that of what its masks leave out, where the base model was asked about it.

    It is `prior.masked` times the mean of (1 - mask) |velocity - base|² over the whole picture, so that a pixel outside counts
    as one of a picture without a mask does, as in OneTrainer without its normalised area; or of whatever loss the run has.
    """
    if batch.base is None or batch.mask is None:
        return loss
    outside = 1 - batch.mask
    weight = config.prior.masked * batch.weight * outside.flatten(1).mean(dim=1)  # the loss itself is a mean over the outside
    return loss + flow.flow_loss(velocity, batch.base, batch.t, config.flow, mask=outside, weight=weight)
