"""What all metrics share: sums over images that any number of processes may take, and add up."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sak.errors import SakError
from sak.tasks import IGNORE

Shape = tuple[int, ...]


class StreamingMetric:
    """Named sums on one device; adding the states of two metrics is as if one had seen the images of both.

    Counts are int64 and sums float64 (float32 loses counts above 2^24): on a device without float64 (MPS), keep the
    metric on the CPU. Attributes: state: name -> tensor.
    """

    def __init__(self, device: torch.device | str, *, counts: Mapping[str, Shape], sums: Mapping[str, Shape]) -> None:
        """All zero; `counts` and `sums` are name -> shape."""
        zeros = [(counts, torch.int64), (sums, torch.float64)]
        self.state = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for shapes, dtype in zeros
            for name, shape in shapes.items()
        }

    @property
    def device(self) -> torch.device:
        """Where the sums are, and where predictions and labels are taken to."""
        return next(iter(self.state.values())).device

    def merge(self, other: "StreamingMetric") -> None:
        """Add what another metric of the same kind has seen; ValueError for one of another kind."""
        if _shapes(other.state) != _shapes(self.state):
            raise ValueError(f"cannot merge {type(other).__name__} into {type(self).__name__}: their states differ")
        for name, value in other.state.items():
            self.state[name] += value.to(self.device)

    def reduce_(self, sum_in_place: Callable[[Tensor], object]) -> None:
        """Sum over processes: `metric.reduce_(torch.distributed.all_reduce)` leaves every process with the whole."""
        for value in self.state.values():
            sum_in_place(value)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over a state saved elsewhere; ValueError for one of another kind."""
        if _shapes(state) != _shapes(self.state):
            raise ValueError(f"not a state of {type(self).__name__}: it has {sorted(state)}")
        self.state = {name: value.to(self.state[name]) for name, value in state.items()}

    def _take(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Both on the metric's device, detached; SakError where their sizes differ or the prediction is not finite."""
        if prediction.shape != label.shape:
            raise SakError(
                f"{type(self).__name__}: the prediction is {tuple(prediction.shape)} and the label "
                f"{tuple(label.shape)}; bring the prediction to the label's size first"
            )
        prediction, label = prediction.detach().to(self.device), label.to(self.device)
        if prediction.is_floating_point() and not is_finite(prediction):
            raise SakError(f"{type(self).__name__}: the prediction holds values that are not finite")
        return prediction, label


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def images(map_: Tensor) -> Tensor:
    """A single map (H, W) as a batch of one, a batch (B, H, W) as it is; ValueError for anything else."""
    if map_.ndim not in (2, 3):
        raise ValueError(f"a metric takes maps (H, W) or (B, H, W), got shape {tuple(map_.shape)}")
    return map_.reshape(-1, *map_.shape[-2:])


def ratio(part: Tensor, total: Tensor) -> Tensor:
    """The quotient in float64, 0 where the total is 0."""
    total = total.double()
    return torch.where(total == 0, 0.0, part.double() / total)


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; ten times faster than looking at every value's `isfinite`."""
    return values.numel() == 0 or bool(torch.stack(values.aminmax()).isfinite().all())


def class_numbers(values: Tensor, count: int, what: str, *, within: Tensor | None = None) -> Tensor:
    """Values of any dtype as uint8; SakError where one is not a class from 0 to count - 1, of at most 255.

    255 is taken for "ignored", or every pixel outside the mask `within` is: whatever it holds becomes `count`.
    """
    numbers = values.to(torch.uint8)
    # what does not fit into a byte comes out as some other number, and is found by that
    changed = numbers != values
    counted = numbers != IGNORE if within is None else within
    wrong = (numbers >= count) & counted | (changed if within is None else changed & counted)
    if bool(wrong.any()):
        raise SakError(f"{what} holds class {values[wrong][0].item():g}, but there are {count}, 0 to {count - 1}")
    return numbers.masked_fill_(~counted, count)
