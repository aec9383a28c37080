"""Documents that lie one after the other in a window, none of which sees another.

B batch, T time, H heads, R rows (one per document).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lmlab.modes import in_mode

UNMOVED = 1e-5  # share of the logits by which they move in fp32 where nothing but the order of sums is another


def first(output: Any) -> Tensor:
    """The last hidden state of a base model's output, or the logits of a language model's."""
    tensor: Tensor = output[0]
    return tensor


def restarted_positions(segments_BT: Tensor) -> Tensor:
    """Position ids that begin at 0 in every segment, positions_BT. transformers takes a jump for a new document."""
    index_BT = torch.arange(segments_BT.size(1), device=segments_BT.device).expand_as(segments_BT)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return index_BT - torch.where(begins_BT, index_BT, 0).cummax(dim=1).values


def in_rows(module: nn.Module, ids_BT: Tensor, segments_BT: Tensor) -> Tensor:
    """The first output of `module` with every document in a row of its own: slower, and right for any causal model."""
    ids_RT, real_RT = documents_in_rows(ids_BT, segments_BT)
    return first(module(input_ids=ids_RT, use_cache=False))[real_RT].unflatten(0, ids_BT.shape)


def documents_in_rows(ids_BT: Tensor, segments_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Every document in a row of its own, ids_RT, padded at its end; and where there are real tokens, real_RT."""
    begins_BT = restarted_positions(segments_BT) == 0
    starts_R = begins_BT.flatten().nonzero().flatten()
    lengths_R = torch.diff(starts_R, append=starts_R.new_tensor([ids_BT.numel()]))
    ids_RT = pad_sequence(list(ids_BT.flatten().split(lengths_R.tolist())), batch_first=True)
    return ids_RT, torch.arange(ids_RT.size(1), device=ids_RT.device) < lengths_R[:, None]


def apart(seen: Callable[[Tensor], list[Tensor]], ids_T: Tensor, segments_T: Tensor) -> list[Tensor]:
    """The attention of a window, each layer 1HTT, whose documents are read one by one."""
    lengths = segments_T.unique_consecutive(return_counts=True)[1].tolist()
    of_documents = [seen(document_T[None]) for document_T in ids_T.split(lengths)]
    layers = []
    for blocks in zip(*of_documents, strict=True):
        whole = blocks[0].new_zeros(1, blocks[0].size(1), len(ids_T), len(ids_T))
        start = 0
        for block in blocks:
            stop = start + block.size(-1)
            whole[..., start:stop, start:stop] = block
            start = stop
        layers.append(whole)
    return layers


@torch.no_grad()
def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Whether restarting position ids keep two documents apart, by trying it.

    The second comes out as if alone, and does not move with the first, of which a state that is passed along would tell.
    """
    weight = model.get_input_embeddings().weight
    ids_BT = torch.arange(8, device=weight.device)[None]
    other_BT = torch.cat([ids_BT[:, 4:].flip(1), ids_BT[:, 4:]], dim=1)
    positions_BT = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=weight.device)
    with in_mode(model, training=False), torch.autocast(weight.device.type, enabled=False):
        try:
            packed, moved = (
                first(model(input_ids=each_BT, position_ids=positions_BT, use_cache=False))[:, 4:].float()
                for each_BT in (ids_BT, other_BT)
            )
        except TypeError:  # the model takes no position ids
            return False
        alone = first(model(input_ids=ids_BT[:, 4:], use_cache=False)).float()
    spread = (alone - alone.mean()).norm()
    rounding = 1e-4 if weight.dtype == torch.float32 else 2e-2  # other sizes, other kernels
    return bool((moved - packed).norm() <= UNMOVED * spread and (packed - alone).norm() <= rounding * spread)
