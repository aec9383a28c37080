"""Estimates of a run's memory, disk and time from plain numbers, before anything is built. Imports no torch.

The terms follow what autograd keeps for the backward pass of the code in `transformer.py` and of the models of
transformers; tests hold them against real tensors and real processes. After Korthikanti et al. 2022 (Reducing
Activation Recomputation in Large Transformer Models, section 4).

All sizes are bytes. In names and comments: B windows of a micro-batch, T tokens of a window, N = B·T, D model width,
H heads, A heads × head width, C the same for keys and values (smaller where heads share them), F feed-forward width,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmlab.config import ARCHITECTURE, TrainingConfig
from lmlab.entries import CUSTOM

FLOAT = 4  # weights, gradients, the optimizer's state and the residual stream are fp32 in every precision

# The rules of the code that the terms below follow; tests compare each with its origin.
BLOCKWISE_KEYS = 512  # up to here bf16 attention on a processor keeps its probabilities, `transformer.attend`
QUERIES_AT_ONCE = 64  # in blocks of so many queries, each with the keys up to its end
LOGITS_AT_ONCE = 1 << 24  # from here on the loss is computed in chunks, `adapters.head.chunked_cross_entropy`

# What the process gains besides tensors when it first trains: kernels made for this processor, and what torch loads for
# it, to which activation checkpointing adds torch's compiler. Measured with a model of a few hundred weights.
LIBRARIES, COMPILER = 40_000_000, 70_000_000
# Between tensors of different lives a heap has holes that no other tensor fits into. With glibc's they come to 0.1 to 0.8
# of the activations, over the shipped configs in both precisions; they vanish where every tensor is mapped by itself
# (MALLOC_MMAP_THRESHOLD_=262144). Compare Knuth's fifty-percent rule (The Art of Computer Programming, section 2.5).
HOLES = 0.4

# The share of the measured peak that steps reach: what is not a matrix product takes its time as well, and relatively
# more where the products are fast. The small, default and large config reach 0.2, 0.42 and 0.56 in bf16, 0.47, 0.74
# and 0.65 in fp32, on two cores that have bf16 instructions.
UTILIZATION = {"bf16": 0.4, "fp32": 0.65}
SECONDS_PER_SAMPLED_TOKEN_AND_LAYER = 4e-4  # a pass over one token is overhead alone
LOG_LINE = 300  # a step event of the log
CHECKPOINT_REST = 14_000  # what a checkpoint holds besides weights and optimizer: state, random numbers, tensors' names
RUN_REST = 6_000  # what a run holds besides: its config, and the first lines of its log

# Families of transformers that write attention out, so that scores are held whole, and those whose gated feed-forward
# has one matrix for both of its inner products, which is not fused.
WRITTEN_OUT = ("bloom", "codegen", "gpt_neo", "gptj", "mpt")
JOINED = ("glm", "glm4", "phi3")
# Families whose activations the terms below cover, by measurement; others may have parts that none of them counts.
MEASURED = (
    "bloom", "codegen", "cohere", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite",
    "llama", "mamba", "mistral", "mixtral", "mpt", "olmo2", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe",
    "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
STATE_SPACES = ("falcon_mamba", "mamba")  # which on a processor go through a text one token at a time


@dataclass(frozen=True)
class Shape:
    """The widths that memory depends on.

    custom: the lab's own Transformer. gated: a feed-forward of three matrices. root_mean_square: norms of that kind,
    which transformers writes in several steps. fused: both as `adapters.fused` has them. kept_feed_forward: tensors as
    wide as F that the feed-forward keeps. dropout: of the residual stream; attention_dropout: of the scores, which are
    then held whole. written_out: whether they are without it, too; capped: whether a cap is kept beside them.
    n_routed: experts that each token is sent to, of width d_expert. state: numbers that a state-space model keeps for
    each of its F channels, 0 for other models. measured: whether the terms are those of its family.
    """

    custom: bool
    n_layers: int
    d_model: int
    n_heads: int
    attention_width: int
    key_value_width: int
    d_ff: int
    vocab_size: int
    gated: bool = False
    root_mean_square: bool = False
    fused: bool = False
    kept_feed_forward: int = 2
    dropout: float = 0.0
    attention_dropout: float = 0.0
    written_out: bool = False
    capped: bool = False
    n_routed: int = 0
    d_expert: int = 0
    state: int = 0
    measured: bool = True

    @property
    def block_matrices(self) -> int:
        """Weights of the matrices in all blocks."""
        attention = self.d_model * (2 * self.attention_width + 2 * self.key_value_width)
        return self.n_layers * (attention + (3 if self.gated else 2) * self.d_model * self.d_ff)

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.d_model


def shape_of(architecture: Mapping[str, Any]) -> Shape:
    """The shape that a `config.json` describes: the lab's own, or one of transformers under any of its usual names."""
    if architecture.get("model_type") == CUSTOM:
        values = {name: architecture[name] for name in ("vocab_size", *ARCHITECTURE)}
        width = values["d_model"]
        return Shape(custom=True, attention_width=width, key_value_width=width, **values)
    nested = architecture.get("text_config")
    values = {**architecture, **(nested if isinstance(nested, Mapping) else {})}

    def value(*names: str, default: Any = 0) -> Any:
        return next((values[name] for name in names if values.get(name) is not None), default)

    d_model = value("hidden_size", "n_embd", "d_model")
    n_heads = value("num_attention_heads", "n_head", "n_heads", "num_heads", default=1)
    head_width = value("head_dim", default=d_model // n_heads)
    gated = "rms_norm_eps" in values  # the family of Llama has both
    activation = value("hidden_activation", "hidden_act", "activation_function", default="")
    family, capped = values.get("model_type"), value("attn_logit_softcapping") > 0
    fused = gated and activation in ("silu", "swish") and family not in JOINED
    d_ff = value("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * d_model)
    routes = value("num_experts", "num_local_experts", "n_routed_experts") > 0
    d_expert = value("moe_intermediate_size", default=d_ff)
    shared = value("n_shared_experts") * d_expert
    if family in STATE_SPACES:
        gated = fused = False
        n_heads = head_width = 0
    return Shape(
        custom=False,
        n_layers=value("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        d_model=d_model,
        n_heads=n_heads,
        attention_width=n_heads * head_width,
        key_value_width=value("num_key_value_heads", default=n_heads) * head_width,
        d_ff=value("shared_expert_intermediate_size", default=shared) if routes else d_ff,
        vocab_size=value("vocab_size"),
        gated=gated,
        root_mean_square=gated,
        fused=fused,
        # The gated one as transformers has it, and "gelu_new", are written out in steps.
        kept_feed_forward=2 if fused else 4 if gated else 5 if activation == "gelu_new" else 2,
        dropout=value("resid_pdrop", "hidden_dropout", default=0.0),
        attention_dropout=value("attn_pdrop", "attention_dropout", default=0.0),
        written_out=capped or family in WRITTEN_OUT,
        capped=capped,
        n_routed=value("num_experts_per_tok", default=1) if routes else 0,
        d_expert=d_expert if routes else 0,
        state=value("state_size") if family in STATE_SPACES else 0,
        measured=family in MEASURED,
    )


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Sizes in bytes, at the peak of a training step; `memory` is their sum but for what takes turns.

    libraries: code that the first update loads. allocator: memory between tensors that cannot be used. copies: tensors
    of a checkpoint that is written beside the training. disk: checkpoints and log at the end; disk_peak: while one more
    is written than is kept. seconds: training, evaluations and samples. epochs: None where the text's length is not
    known. at_least: whether it may be more memory, of a model whose activations were never measured.
    """

    n_parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    libraries: int
    allocator: int
    copies: int
    memory: int
    checkpoint: int
    n_checkpoints: int
    disk: int
    disk_peak: int
    tokens: int
    epochs: float | None
    flops_per_step: float
    seconds: float
    at_least: bool = False


def estimate(
    shape: Shape,
    config: TrainingConfig,
    *,
    n_parameters: int,
    flops_per_token: float,
    peak_flops: float,
    precision: str,
    device: str = "cpu",
    n_train: int | None = None,
    n_val: int = 0,
    steps: int | None = None,
) -> Estimate:
    """What `steps` updates of a config (None: all) take.

    flops_per_token: of a training step, forward and backward. peak_flops: what the machine's matrix products reach per
    second. precision: "fp32" or "bf16". device: torch's name of its type. n_train, n_val: tokens of the two splits.
    """
    steps = config.max_steps if steps is None else steps
    weights = gradients = FLOAT * n_parameters
    optimizer = optimizer_bytes(shape, config, n_parameters)
    activations = activation_bytes(shape, config, precision, device)
    # In one backward pass gradients appear as activations go; from a second one on, all of them are there.
    at_once = gradients + activations if config.gradient_accumulation_steps > 1 else max(gradients, activations)
    libraries, allocator = untensored_bytes(config, activations, device)
    copies = weights + optimizer if copies_checkpoints(config, device) else 0
    n_checkpoints, n_at_peak = checkpoints_kept(config)
    each, besides = weights + optimizer + CHECKPOINT_REST, RUN_REST + LOG_LINE * config.max_steps
    tokens_per_step = config.batch_size * config.gradient_accumulation_steps * config.max_seq_len
    flops_per_step = flops_per_token * tokens_per_step
    speed = peak_flops * UTILIZATION[precision]
    return Estimate(
        n_parameters=n_parameters,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        libraries=libraries,
        allocator=allocator,
        copies=copies,
        memory=libraries + allocator + weights + optimizer + copies + at_once,
        checkpoint=each,
        n_checkpoints=n_checkpoints,
        disk=n_checkpoints * each + besides,
        disk_peak=n_at_peak * each + besides,
        tokens=steps * tokens_per_step,
        epochs=steps * tokens_per_step / n_train if n_train else None,
        flops_per_step=flops_per_step,
        seconds=steps * flops_per_step * (4 / 3 if config.activation_checkpointing else 1) / speed
        + evaluation_flops(config, flops_per_token, n_val, steps) / speed
        + sampled_tokens(config, steps) * shape.n_layers * SECONDS_PER_SAMPLED_TOKEN_AND_LAYER,
        at_least=not shape.measured,
    )


# --- memory -----------------------------------------------------------------------------------------------------


def untensored_bytes(config: TrainingConfig, activations: int, device: str) -> tuple[int, int]:
    """What a process on a processor takes besides its tensors: libraries, and holes of the heap between activations."""
    if device != "cpu":
        return 0, 0
    compiler = COMPILER if config.activation_checkpointing or config.compile else 0
    return LIBRARIES + compiler, round(HOLES * activations)


def optimizer_bytes(shape: Shape, config: TrainingConfig, n_parameters: int) -> int:
    """AdamW keeps two numbers for a weight, Muon one, and Muon has the matrices in the blocks alone."""
    with_muon = min(n_parameters, shape.block_matrices) if config.optimizer == "muon" else 0
    return FLOAT * (2 * n_parameters - with_muon)


def activation_bytes(shape: Shape, config: TrainingConfig, precision: str, device: str) -> int:
    """What the forward pass of a micro-batch keeps for the backward pass, and what is made for a moment at the peak.

    With activation checkpointing, every block keeps its input alone, and one block at a time is computed again.
    """
    B, T = config.batch_size, config.max_seq_len
    width = 2 if precision == "bf16" else FLOAT  # of the operands and results of matrix products under autocast
    residual = FLOAT * B * T * shape.d_model
    attention = shape.n_layers * 4 * shape.d_model**2  # the lab's own feed-forward holds no copies
    copied = attention if shape.custom else shape.block_matrices
    copies = width * copied if width < FLOAT else 0  # of weights, made by autocast
    head_copy = width * shape.head if width < FLOAT else 0
    block = block_bytes(shape, B, T, width, device)
    outside = outer_bytes(shape, B, T, width) + head_copy
    loss = head_bytes(shape, B * T, width)
    # The gradients of the head, which comes first, of the residual, and of the widest activation, and a factor of that
    # but in the lab's own feed-forward, which multiplies in place.
    widest = max(shape.d_ff, shape.n_routed * shape.d_expert, shape.state * shape.d_ff)
    moment = FLOAT * shape.head + residual + (1 if shape.custom else 2) * width * B * T * widest
    if not config.activation_checkpointing:
        return shape.n_layers * block + copies + outside + max(loss, moment)
    inputs = shape.n_layers * residual + outside
    return max(inputs + copies + loss, inputs + block + copies // shape.n_layers + moment)


def block_bytes(shape: Shape, B: int, T: int, width: int, device: str) -> int:
    """What one block keeps, its own input included."""
    N = B * T
    residual, narrow = FLOAT * N * shape.d_model, width * N * shape.d_model
    mask = dropout_mask_bytes(shape, N, width, device)
    feed_forward = shape.kept_feed_forward * width * N * shape.d_ff + routed_bytes(shape, N)
    if shape.state:
        return 2 * (residual + narrow) + state_space_bytes(shape, N, width)
    if shape.fused:  # each norm keeps its input, a factor for every token, and the output that products share
        return 2 * (residual + FLOAT * N + narrow) + attention_bytes(shape, B, T, width, device) + feed_forward
    # Of each norm: its input, the mean and deviation of every token, what transformers makes on the way, and the output,
    # of which autocast makes a copy for every product that reads it; the lab's own products are joined.
    norms = 2 * (residual * (2 if shape.root_mean_square else 1) + 2 * FLOAT * N)
    norms += narrow * (5 if shape.gated and width < FLOAT else 2)
    return norms + attention_bytes(shape, B, T, width, device) + feed_forward + 2 * mask


def routed_bytes(shape: Shape, N: int) -> int:
    """What experts keep, in fp32 in every precision: vectors in and out, both inner products, and what becomes of them."""
    return FLOAT * N * shape.n_routed * (2 * shape.d_model + 4 * shape.d_expert)


def state_space_bytes(shape: Shape, N: int, width: int) -> int:
    """What a state-space layer (Gu and Dao 2023) keeps: the states of all tokens, what goes into each and what stays of
    the one before, and what is as wide as F."""
    states = (3 * FLOAT + (width if width < FLOAT else 0)) * N * shape.d_ff * shape.state
    return states + 10 * width * N * shape.d_ff


def attention_bytes(shape: Shape, B: int, T: int, width: int, device: str) -> int:
    """What attention keeps of queries, keys, values, scores and its output."""
    N, H = B * T, shape.n_heads
    queries, keys = width * N * shape.attention_width, width * N * shape.key_value_width
    looked = FLOAT * B * H * T  # the sum of each row, or in blocks all that is not left out
    dropped = bool(shape.attention_dropout) and not shape.custom
    in_blocks = device == "cpu" and width < FLOAT and T <= BLOCKWISE_KEYS and not dropped
    if in_blocks:
        starts = range(0, T, QUERIES_AT_ONCE)
        scores = sum(min(QUERIES_AT_ONCE, T - start) * min(start + QUERIES_AT_ONCE, T) for start in starts)
        looked = width * B * H * scores
    if not shape.custom:
        held_whole = 3 * FLOAT * B * H * T * T if shape.attention_dropout else 0  # scores, mask and their product
        if shape.written_out and not held_whole:  # what the softmax gives in fp32, and its copy for the product
            rounded = width if width < FLOAT else 0
            looked, held_whole = 0, (FLOAT + rounded + (width if shape.capped else 0)) * B * H * T * T
        return 2 * queries + 2 * keys + looked + held_whole
    projected = 3 * queries + 2 * width * 2 * B * H * T  # with the mean and deviation of every query and key
    # Queries and keys turned; the output in order, and by the fused kernel as it was made, too.
    return projected + (3 if in_blocks else 4) * queries + looked


def dropout_mask_bytes(shape: Shape, N: int, width: int, device: str) -> int:
    """One mask of dropout on the residual stream: of the stream's own type on a processor, else a byte an element."""
    if not shape.dropout:
        return 0
    return (width if device == "cpu" else 1) * N * shape.d_model


def outer_bytes(shape: Shape, B: int, T: int, width: int) -> int:
    """What is kept outside the blocks: token ids and targets, the final norm."""
    N = B * T
    residual = FLOAT * N * shape.d_model
    norm = residual * (2 if shape.root_mean_square else 1) + 2 * FLOAT * N + width * N * shape.d_model
    return 2 * 8 * N + norm


def head_bytes(shape: Shape, N: int, width: int) -> int:
    """The peak of the loss: log-probabilities and two gradients of them, fp32, by which time the logits are gone; or
    one of these beside the head's gradient. In chunks, beside that of the chunks before."""
    elements, gradient = FLOAT * min(N * shape.vocab_size, LOGITS_AT_ONCE), width * shape.head
    if N * shape.vocab_size <= LOGITS_AT_ONCE:
        return max(3 * elements, elements + gradient)
    copy = width * shape.head if width < FLOAT else 0  # autocast makes another one where a chunk is computed again
    return max(3 * elements + gradient, elements + 2 * gradient + copy)


# --- disk and time ----------------------------------------------------------------------------------------------


def copies_checkpoints(config: TrainingConfig, device: str) -> bool:
    """Whether a checkpoint's tensors are copied beside the training; an accelerator's go to the machine's memory."""
    within = any(cadence <= config.max_steps for cadence in saving_cadences(config))
    return config.async_checkpoints and within and device == "cpu"


def saving_cadences(config: TrainingConfig) -> list[int]:
    """After how many updates a checkpoint may be due: with early stopping, any evaluation may be the best so far."""
    evaluations = config.eval_cadence if config.early_stopping_patience is not None else None
    return [cadence for cadence in (config.checkpoint_cadence, evaluations) if cadence is not None]


def checkpoints_kept(config: TrainingConfig) -> tuple[int, int]:
    """How many checkpoints a run leaves at most, and how many there are while the last is written."""
    cadences, last = saving_cadences(config), config.max_steps - 1
    made = 1 + sum(last // cadence for cadence in cadences)  # the end, and what comes before it
    if len(cadences) > 1:
        made -= last // math.lcm(*cadences)
    if config.keep_checkpoints is None or made <= config.keep_checkpoints:
        return made, made
    kept = min(made, config.keep_checkpoints + (config.eval_cadence is not None))  # the best one besides
    return kept, min(made, kept + 1)


def evaluation_flops(config: TrainingConfig, flops_per_token: float, n_val: int, steps: int) -> float:
    """Forward passes, a third of a training step's arithmetic, over the validation split at every evaluation."""
    if config.eval_cadence is None:
        return 0.0
    return flops_per_token / 3 * evaluated_tokens(config, n_val) * (1 + -(-steps // config.eval_cadence))


def evaluated_tokens(config: TrainingConfig, n_val: int) -> int:
    """About how many of a validation split's tokens an evaluation counts: those of `eval_batches`, or all."""
    if config.eval_batches is None:
        return n_val
    return min(n_val, config.eval_batches * config.batch_size * config.max_seq_len)


def sampled_tokens(config: TrainingConfig, steps: int) -> int:
    """Tokens of all samples, the one at the end included."""
    cadence = config.sampling_cadence
    return config.sampling_max_length * (1 if cadence is None else -(-steps // cadence))
