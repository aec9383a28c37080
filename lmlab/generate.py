"""Sampling from a causal language model with a key-value cache.

B batch, T time, V vocabulary. Temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lmlab.config import TrainingConfig
from lmlab.errors import DivergedError, TokenizerError
from lmlab.modes import in_mode
from lmlab.tokenizers import Tokenizer

COLDEST = 1e-6  # a lower temperature takes the likeliest token, as 0 does: logits divided by it would overflow


class Model(Protocol):
    """What sampling needs of a model: an adapter has it."""

    training: bool
    max_positions: int | None
    end_of_text_id: int | None
    turn_ends: frozenset[int]
    n_tokens: int | None

    def next_logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor: ...
    def new_cache(self, batch_size: int) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose the next token. temperature 0 takes the likeliest; None switches top_k and top_p off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    @classmethod
    def from_config(cls, config: TrainingConfig) -> SamplingSettings:
        """The `sampling_…` fields of a config."""
        return cls(
            max_new_tokens=config.sampling_max_length,
            temperature=config.sampling_temperature,
            top_k=config.sampling_top_k,
            top_p=config.sampling_top_p,
            seed=config.sampling_seed,
        )


def prompt_problem(prompt: str, tokenizer: Tokenizer, longest: int | None) -> str:
    """Why the samples of a run will not go on from its `sampling_prompt`, empty where they will.

    longest: the context that the model takes, None where it has no limit.
    """
    try:
        n_prompt = len(tokenizer.begun(tokenizer.encode(prompt)))
    except TokenizerError as error:
        return f"sampling_prompt cannot be encoded ({error}); samples begin elsewhere"
    if longest is None or n_prompt < longest:
        return ""
    return f"sampling_prompt has {n_prompt:,} tokens, and the model takes {longest:,} in all: samples end with it"


def candidates(logits_BV: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor | None]:
    """The tokens that may be drawn: probabilities_BC in fp32 and ids_BC, the likeliest first; None for all in order.

    Top-k takes k, whichever of those that tie for the last place; top-p takes the fewest whose share of them reaches p,
    and gives the others a probability of 0.
    """
    logits_BV = logits_BV.float() / settings.temperature
    n_tokens = logits_BV.size(-1)
    count = min(settings.top_k or n_tokens, n_tokens)
    top_p = 1.0 if settings.top_p is None else settings.top_p
    if count == n_tokens and top_p >= 1.0:
        return logits_BV.softmax(dim=-1), None
    if count < n_tokens:
        logits_BC, ids_BC = logits_BV.topk(count, dim=-1)
    else:
        logits_BC, ids_BC = logits_BV.sort(dim=-1, descending=True, stable=True)
    probabilities_BC = logits_BC.softmax(dim=-1)
    if top_p >= 1.0:
        return probabilities_BC, ids_BC
    outside_BC = probabilities_BC.cumsum(dim=-1) - probabilities_BC >= top_p
    outside_BC[:, 0] = False
    return logits_BC.masked_fill(outside_BC, -math.inf).softmax(dim=-1), ids_BC


def choose(logits_BV: Tensor, settings: SamplingSettings, generator: torch.Generator | None) -> Tensor:
    """The next token of each row, ids_B1. Raises DivergedError where logits are not numbers.

    Drawn as `torch.multinomial` draws one, by a race: of arrival times with these rates the first wins.
    """
    if settings.temperature < COLDEST:
        ids_BC, (most_B1, winner_B1) = None, logits_BV.max(dim=-1, keepdim=True)
    else:
        probabilities_BC, ids_BC = candidates(logits_BV, settings)
        waiting_BC = torch.empty_like(probabilities_BC).exponential_(1.0, generator=generator)
        most_B1, winner_B1 = (probabilities_BC / waiting_BC).max(dim=-1, keepdim=True)
    if bool(most_B1.isnan().any()):
        raise DivergedError(
            "the model's logits are not numbers: its weights are damaged, or training went wrong before"
        )
    return winner_B1 if ids_BC is None else ids_BC.gather(-1, winner_B1)


def open_document(prompt_BT: Tensor, end_of_text_id: int | None) -> Tensor:
    """What the token after a prompt may look at: the prompt from its last document on, one the same in all rows."""
    if end_of_text_id is None:
        return prompt_BT
    ended_T = (prompt_BT[:, :-1] == end_of_text_id).all(dim=0)
    return prompt_BT[:, int(ended_T.nonzero().max()) + 1 :] if bool(ended_T.any()) else prompt_BT


@torch.no_grad()
def generate(
    model: Model,
    prompt_BT: Tensor,
    settings: SamplingSettings,
    *,
    use_cache: bool = True,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The prompt and up to `max_new_tokens` that follow it, ids_BT (int64).

    Stops early when every row has ended its document, or its turn in a chat; a row that ended is filled with its end.
    No token looks back over the end of a document, as in training; the rows of a prompt are to have their ends alike.
    Rows of the embedding beyond `n_tokens`, which no tokenizer could say, are never drawn.
    A seed makes the tokens reproducible and leaves torch's default generator alone. on_token is called with each new
    ids_B1. Dropout is off meanwhile, and the model is left in the mode it was in. Text longer than a model with
    `max_positions` can take is cut at that length.
    """
    generator = None
    if settings.seed is not None:
        generator = torch.Generator(prompt_BT.device).manual_seed(settings.seed)
    limit = math.inf if model.max_positions is None else model.max_positions
    ids_BT, cache = prompt_BT, model.new_cache(prompt_BT.size(0)) if use_cache else None
    fresh_BT = open_document(prompt_BT, model.end_of_text_id) if use_cache else prompt_BT
    end = model.end_of_text_id
    ends_E = prompt_BT.new_tensor(sorted({end, *model.turn_ends} - {None}))
    last_B1, ended_B1 = prompt_BT[:, -1:], torch.zeros_like(prompt_BT[:, :1], dtype=torch.bool)
    begins_anew = use_cache and end is not None and bool((prompt_BT[:, -1] == end).all())
    with in_mode(model, training=False):
        for _ in range(settings.max_new_tokens):
            if ids_BT.size(1) >= limit:
                break
            logits_BV = model.next_logits(fresh_BT if use_cache else ids_BT, cache)[:, : model.n_tokens]
            if begins_anew:  # what follows the end of a document does not see it
                cache, begins_anew = model.new_cache(prompt_BT.size(0)), False
            next_B1 = choose(logits_BV, settings, generator)
            if len(ends_E):
                next_B1 = torch.where(ended_B1, last_B1, next_B1)
                last_B1, ended_B1 = next_B1, (next_B1 == ends_E).any(dim=1, keepdim=True)
            ids_BT, fresh_BT = torch.cat([ids_BT, next_B1], dim=1), next_B1
            if on_token is not None:
                on_token(next_B1)
            if len(ends_E) and bool(ended_B1.all()):
                break
    return ids_BT
