"""Tasks against each other in the loop: a loss weighting that trains along, and gradients combined task by task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.training.protocols import StepResult
from sak.losses.gradients import Combine
from sak.losses.weighting import Weighting

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Balance:
    """What `Fit` must know: the weighting, whose parameters it trains and whose state it saves, and the method.

    `combine` None is the plain sum of gradients. `seed` is that of the method's random order.
    """

    weighting: Weighting
    combine: Combine | None = None
    seed: int = 0


class Surgery:
    """Gradients of each task on the parameters that tasks share, averaged over processes, combined into `.grad`.

    A parameter is shared where two tasks or more reach it: routers and heads of one task are not. The distillation's
    gradient is added as it is. Every task costs a backward pass, and its gradients as much memory as the model's. The
    model runs without DDP's own averaging, which would add the tasks up first.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], balance: Balance, accelerator: Accelerator) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._balance, self._accelerator = balance, accelerator
        self._of_tasks: dict[str, Gradients] = {}
        self._rest: Gradients = [None] * len(self._parameters)

    def add(self, result: StepResult, parts: int) -> None:
        """Backward passes of one part of a batch of `parts`."""
        for task, loss in result.objectives.items():
            found = self._backward(loss / parts)
            self._of_tasks[task] = _sum(self._of_tasks.get(task, [None] * len(found)), found)
        if result.rest is not None and result.rest.requires_grad:  # not where all that it reaches is frozen
            self._rest = _sum(self._rest, self._backward(result.rest / parts))

    def finish(self, step: int) -> None:
        """Put the combined gradients where the optimiser looks for them."""
        of_tasks = {task: self._averaged(found) for task, found in self._of_tasks.items()}
        rest = self._averaged(self._rest)
        weights = self._weights(list(of_tasks.values()), step)
        for index, parameter in enumerate(self._parameters):
            found = [gradients[index] for gradients in of_tasks.values()]
            there = [gradient for gradient in found if gradient is not None]
            if len(there) > 1:
                there = [weight * gradient for weight, gradient in zip(weights, found, strict=True)
                         if gradient is not None]  # fmt: skip
            parts = [*there, *([] if rest[index] is None else [rest[index]])]
            parameter.grad = torch.stack(parts).sum(0) if parts else None  # type: ignore[arg-type]  # None was left out
        self._of_tasks, self._rest = {}, [None] * len(self._parameters)

    def _weights(self, of_tasks: Sequence[Gradients], step: int) -> list[float]:
        if self._balance.combine is None:
            return [1.0] * len(of_tasks)
        generator = torch.Generator().manual_seed((self._balance.seed << 32) + step)
        return self._balance.combine(gram(of_tasks), generator).tolist()

    def _backward(self, loss: Tensor) -> Gradients:
        return list(torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True))

    def _averaged(self, gradients: Gradients) -> Gradients:
        """The mean over the processes, in one message; which parameters have a gradient is alike in all."""
        there = [gradient for gradient in gradients if gradient is not None]
        if self._accelerator.num_processes == 1 or not there:
            return gradients
        joined = self._accelerator.reduce(torch.cat([gradient.flatten() for gradient in there]), "mean")
        pieces = iter(joined.split([gradient.numel() for gradient in there]))
        return [None if gradient is None else next(pieces).view_as(gradient) for gradient in gradients]


def gram(of_tasks: Sequence[Gradients]) -> Tensor:
    """Inner products (T, T) of the tasks' gradients over the parameters that two of them or more reach, on the CPU."""
    total = torch.zeros(len(of_tasks), len(of_tasks), dtype=torch.float64)
    device = None
    for found in zip(*of_tasks, strict=True):
        like = next((gradient for gradient in found if gradient is not None), None)
        if like is None or sum(gradient is not None for gradient in found) < 2:
            continue
        rows = torch.stack([torch.zeros_like(like) if gradient is None else gradient for gradient in found]).flatten(1)
        products = rows.double() @ rows.double().T if rows.device.type != "mps" else rows @ rows.T
        total = total.to(products) + products
        device = products.device
    return total if device is None else total.double().cpu()


def average_over_processes(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """What DDP does for the model, for the few parameters beside it."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def _sum(mine: Gradients, more: Sequence[Tensor | None]) -> Gradients:
    return [other if one is None else one if other is None else one + other
            for one, other in zip(mine, more, strict=True)]  # fmt: skip


def companion_state(balance: Balance | None) -> Mapping[str, Tensor]:
    """What a checkpoint keeps of the weighting."""
    state = balance.weighting.state_dict() if balance is not None else {}
    return {f"weighting.{name}": value for name, value in state.items()}


def load_companion(balance: Balance | None, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `companion_state` took out."""
    if balance is None:
        return
    found = {name.removeprefix("weighting."): value for name, value in tensors.items() if name.startswith("weighting.")}
    balance.weighting.load_state_dict(found)
