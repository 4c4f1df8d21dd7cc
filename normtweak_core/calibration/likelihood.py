"""How likely the float model finds calibration windows."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from normtweak_core.errors import NonFiniteError

LOGIT_BYTES = 2**28  # logits of one batch


def likelihood_batch_size(config: PretrainedConfig, length: int) -> int:
    """Return how many windows are judged at once: a function of the shapes alone."""
    return max(1, LOGIT_BYTES // (4 * length * config.get_text_config().vocab_size))


@torch.no_grad()
def window_nll(
    model: PreTrainedModel, input_ids: Int64[Tensor, "samples length"]
) -> Float64[Tensor, " samples"]:
    """Return each window's mean negative log-likelihood in nats per predicted token.

    The first token of a window is context only.

    Args:
        model: Float model in eval mode.
        input_ids: At least two tokens a window.

    Raises:
        NonFiniteError: A window's likelihood is NaN or infinite.
    """
    batch_size = likelihood_batch_size(model.config, input_ids.shape[1])
    means = []
    for batch in input_ids.split(batch_size):
        logits = model(input_ids=batch.to(model.device), use_cache=False).logits
        for row, ids in zip(logits, batch, strict=True):  # one by one: a second copy is a row's
            losses = functional.cross_entropy(
                row[:-1].float(), ids[1:].to(row.device), reduction="none"
            )
            means.append(losses.double().mean().cpu())
    nll = torch.stack(means)
    if not nll.isfinite().all():
        window = int((~nll.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"the float model must give a finite likelihood; calibration window {window} has "
            f"{nll[window].item()}: check its weights and model.dtype"
        )
    return nll
