"""How the gradients of a batch come about: one backward pass for the whole loss, or one for each task."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.train.protocols import B, Step, StepResult
from sak.variants.weighting import Combine

Gradients = list[Tensor | None]


class Backward(Protocol):
    """What `Fit` calls for the gradients of a step.

    `companion` is trained and saved beside the model, such as a weighting of losses; it may hold nothing.
    """

    companion: nn.Module

    def __call__(self, take_step: Step[B], model: nn.Module, parts: Sequence[B], number: int) -> list[StepResult]:
        """Put the gradients of the parts' mean loss into `.grad`; `number` is the step's."""


class PlainBackward:
    """The gradient of the whole loss, averaged over ranks by DDP with the last part of a batch alone."""

    def __init__(self, accelerator: Accelerator, companion: nn.Module | None = None) -> None:
        self.companion = (nn.Module() if companion is None else companion).to(accelerator.device)
        self._accelerator = accelerator

    def __call__(self, take_step: Step[B], model: nn.Module, parts: Sequence[B], number: int) -> list[StepResult]:
        """See Backward."""
        del number
        results = []
        for position, part in enumerate(parts, start=1):
            with nullcontext() if position == len(parts) else self._accelerator.no_sync(model):
                with self._accelerator.autocast():
                    result = take_step(model, part)
                self._accelerator.backward(result.loss / len(parts))
            results.append(result)
        for parameter in self.companion.parameters() if self._accelerator.num_processes > 1 else ():
            if parameter.grad is not None:  # DDP averages the model's gradients, and knows nothing of the companion's
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
        return results


class GradientSurgery:
    """Gradients of each task on the parameters that tasks share, averaged over ranks, combined into `.grad`.

    A parameter is shared where two tasks or more reach it: routers and heads of one task are not. The distillation's
    gradient is added as it is. Every task costs a backward pass, and its gradients as much memory as the model's. The
    model runs without DDP's own averaging, which would add the tasks up first. `seed` is that of the method's order.
    """

    def __init__(
        self, accelerator: Accelerator, network: nn.Module, companion: nn.Module, combine: Combine, seed: int
    ) -> None:
        self.companion = companion.to(accelerator.device)
        self._accelerator, self._network, self._combine, self._seed = accelerator, network, combine, seed

    def __call__(self, take_step: Step[B], model: nn.Module, parts: Sequence[B], number: int) -> list[StepResult]:
        """See Backward; gradients travel when all parts are done."""
        parameters = [*self._network.parameters(), *self.companion.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        of_tasks: dict[str, Gradients] = {}
        rest: Gradients = [None] * len(trained)
        results = []
        for part in parts:
            with self._accelerator.no_sync(model), self._accelerator.autocast():
                result = take_step(model, part)
            for task, loss in result.objectives.items():
                gradients = _gradients(loss / len(parts), trained)
                of_tasks[task] = _sum(of_tasks.get(task, [None] * len(trained)), gradients)
            if result.rest is not None and result.rest.requires_grad:  # not where all that it reaches is frozen
                rest = _sum(rest, _gradients(result.rest / len(parts), trained))
            results.append(StepResult(result.loss.detach(), result.parts))
        averaged = [self._averaged(gradients) for gradients in of_tasks.values()]
        self._put(trained, averaged, self._averaged(rest), number)
        return results

    def _put(
        self, trained: Sequence[nn.Parameter], of_tasks: Sequence[Gradients], rest: Gradients, number: int
    ) -> None:
        """Put the combined gradients where the optimiser looks for them."""
        generator = torch.Generator().manual_seed((self._seed << 32) + number)
        weights = self._combine(gram(of_tasks), generator).tolist()
        for parameter, of_rest, *own in zip(trained, rest, *of_tasks, strict=True):
            reached = [(weight, part) for weight, part in zip(weights, own, strict=True) if part is not None]
            parts = [weight * gradient if len(reached) > 1 else gradient for weight, gradient in reached]
            parts += [] if of_rest is None else [of_rest]
            parameter.grad = torch.stack(parts).sum(0) if parts else None

    def _averaged(self, gradients: Gradients) -> Gradients:
        """The mean over the ranks, in one message; which parameters have a gradient is alike in all."""
        present = [gradient for gradient in gradients if gradient is not None]
        if self._accelerator.num_processes == 1 or not present:
            return gradients
        joined = self._accelerator.reduce(torch.cat([gradient.flatten() for gradient in present]), "mean")
        pieces = iter(joined.split([gradient.numel() for gradient in present]))
        return [None if gradient is None else next(pieces).view_as(gradient) for gradient in gradients]


def gram(of_tasks: Sequence[Gradients]) -> Tensor:
    """Inner products (T, T) of the tasks' gradients over the parameters that two of them or more reach, on the CPU."""
    total = torch.zeros(len(of_tasks), len(of_tasks), dtype=torch.float64)
    device = None
    for own in zip(*of_tasks, strict=True):
        like = next((gradient for gradient in own if gradient is not None), None)
        if like is None or sum(gradient is not None for gradient in own) < 2:
            continue
        rows = torch.stack([torch.zeros_like(like) if gradient is None else gradient for gradient in own]).flatten(1)
        products = rows.double() @ rows.double().T if rows.device.type != "mps" else rows @ rows.T
        total = total.to(products) + products
        device = products.device
    return total if device is None else total.double().cpu()


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Gradients:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def _sum(first: Gradients, second: Sequence[Tensor | None]) -> Gradients:
    return [right if left is None else left if right is None else left + right
            for left, right in zip(first, second, strict=True)]  # fmt: skip
