"""Optimizers, their state as plain tensors, and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.checkpoint import Tensors
from lmlab.config import TrainingConfig
from lmlab.ranks import is_spread, own_part, own_range


class Direct(torch.optim.Optimizer):
    """Calls the methods themselves, without the wrappers that import torch's compiler at the first call.

    That takes as long as importing torch, and serves those alone who compile the optimizer, too.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Direct, torch.optim.AdamW):
    """torch's AdamW, called directly."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(Direct, torch.optim.Muon):
    """Muon that multiplies in `dtype`, the precision of the run; torch's own does in bf16 on any machine.

    The coefficients of its iterations are torch's. The update has the size of AdamW's (Liu et al. 2025).
    """

    dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state, momentum, learning_rate = self.state[matrix], group["momentum"], group["lr"]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                update = matrix.grad.lerp(average, momentum).to(self.dtype)
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"])
                matrix.mul_(1 - learning_rate * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * math.sqrt(max(matrix.shape)) * learning_rate)


# What lmlab's own keep for a parameter: counts, and tensors of its shape. Of others, neither names nor shapes are known.
KEYS = {AdamW: ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"), Muon: ("momentum_buffer",)}


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], n_iterations: int) -> Tensor:
    """Bring all singular values of a matrix near 1 (to 0.7 to 1.2 or so) by the quintic iteration of Jordan (2024)."""
    a, b, c = coefficients
    wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)  # no singular value above 1
    for _ in range(n_iterations):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.size(0) <= matrix.size(1) else wide.T


def create_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters (Loshchilov and Hutter 2019), weight decay on matrices alone, and on no bias.

    `optimizer: muon` gives the hidden matrices to Muon (Jordan 2024, scaled to AdamW's step as in Liu et al. 2025) and
    the rest (embeddings, positions, head, vectors, stacks of experts' matrices) to AdamW.
    """
    if config.optimizer == "muon":
        return MuonWithAdamW(model, config)
    return adamw(trainable(model), config)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices that multiply inside a model: of linear layers and routers, but not the head, which may be
    the embedding."""
    modules: list[Any] = list(model.modules())
    heads = [module.get_output_embeddings() for module in modules if hasattr(module, "get_output_embeddings")]
    tables = [module for module in modules if isinstance(module, nn.Embedding)]
    kept_out = {id(getattr(module, "weight", None)) for module in (*heads, *tables)}
    held = {id(getattr(module, "weight", None)) for module in modules} - kept_out
    return [p for p in model.parameters() if id(p) in held and p.dim() == 2 and p.requires_grad]


def adamw(parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over parameters by name, in two groups: matrices decay; vectors, and biases of any shape, do not.

    Fused: one pass over each tensor's state.
    """
    decayed = {name for name, p in parameters.items() if p.dim() >= 2 and not name.endswith("bias")}
    groups = [
        {"params": [p for name, p in parameters.items() if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in parameters.items() if name not in decayed], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=betas, fused=True)


class MuonWithAdamW(Direct):
    """Muon for hidden matrices and AdamW for all else, behind one face."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        parameters = trainable(model)
        matrices = hidden_matrices(model)
        held = {id(p) for p in matrices}
        others = {name: p for name, p in parameters.items() if id(p) not in held}
        super().__init__(parameters.values(), {"lr": config.learning_rate})
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay))
        if others:
            self.optimizers.append(adamw(others, config))
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()


def name_of_other(optimizer: torch.optim.Optimizer) -> str | None:
    """The class of an optimizer that is none of those here, such as `torch.optim.sgd.SGD`, else None."""
    own = isinstance(optimizer, AdamW | MuonWithAdamW)
    return None if own else f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def parts(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The plain optimizers that make up one: itself, or the two behind MuonWithAdamW."""
    return optimizer.optimizers if isinstance(optimizer, MuonWithAdamW) else [optimizer]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the learning rate of the coming update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def set_precision(optimizer: torch.optim.Optimizer, precision: str) -> None:
    """Let what multiplies matrices do so in a precision, "bf16" or "fp32". AdamW multiplies none."""
    for part in parts(optimizer):
        if isinstance(part, Muon):
            part.dtype = torch.bfloat16 if precision == "bf16" else torch.float32


def learning_rate_at(step: int, config: TrainingConfig, decay_steps: int) -> float:
    """The learning rate of update `step` (the first is 1).

    It climbs linearly over `warmup_steps`, then stays, or falls to a tenth at `decay_steps` by a cosine (Loshchilov
    and Hutter 2017) or a line, and stays there.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    span = max(1, decay_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.lr_schedule == "cosine" else 1.0 - progress
    return config.learning_rate * (0.1 + 0.9 * left)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's whole state as tensors named `PARAMETER.KEY`, such as `norm.weight.exp_avg`."""
    tensors: dict[str, Tensor] = {}
    states = [part.state for part in parts(optimizer)]
    for name, parameter in model.named_parameters():
        for state in states:
            for key, value in state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises ValueError naming a tensor that fits no parameter.

    Of a parameter whose rows are dealt out over ranks, `Tensors` of a checkpoint read this rank's rows alone.
    """
    by_name = dict(model.named_parameters())
    for full_name in tensors:
        name, _, key = full_name.rpartition(".")
        parameter = by_name.get(name)
        owner = next((o for o in parts(optimizer) if parameter is not None and holds(o, parameter)), None)
        if parameter is None or owner is None:
            raise ValueError(f"tensor {full_name} belongs to no trained parameter")
        keys = KEYS.get(type(owner))
        if keys is not None and key not in keys:  # older versions gave Muon other matrices, too
            raise ValueError(f"tensor {full_name} is not of {type(owner).__name__}, which updates {name} now")
        shape = tensors.shape(full_name) if isinstance(tensors, Tensors) else list(tensors[full_name].shape)
        if shape and (keys is not None or is_spread(parameter)) and shape != list(parameter.shape):
            raise ValueError(f"tensor {full_name} has shape {shape}, not {list(parameter.shape)}")
        if shape and is_spread(parameter):
            assert isinstance(tensors, Tensors)
            state = torch.zeros_like(parameter.detach())
            own_part(state).copy_(tensors.rows(full_name, *own_range(parameter)))
        else:
            state = tensors[full_name].to(parameter.device, copy=True)  # counts too: fused optimizers want them there
        owner.state[parameter][key] = state


def holds(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    """Whether an optimizer updates a parameter."""
    return any(parameter is p for group in optimizer.param_groups for p in group["params"])
