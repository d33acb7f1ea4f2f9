"""Whether a model keeps documents apart that stand side by side in one row of tokens."""

import torch
from torch import nn

from stages.models.logprobs import takes_positions
from stages.models.modes import evaluating


def keeps_documents_apart(model: nn.Module) -> bool:
    """Whether what a model says of a document stays the same when another one stands before it.

    That positions begin anew is all that tells the documents apart. Models of transformers make their attention mask
    from it; those that carry a state along, or that can't be told positions, don't. So it is tried, on two documents
    of two tokens.

    Args:
        model: a causal language model on the device that it runs on; it is left in the mode it is found in.
    """
    if not takes_positions(model):
        return False
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]], device=device)
    positions = torch.tensor([[0, 1, 0, 1]], device=device)
    with evaluating(model):
        # One row at a time: attention kernels for packed rows take no more.
        first, second = (
            model(input_ids=row[None], position_ids=positions, use_cache=False).logits[0, 2:].float() for row in ids
        )
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))
