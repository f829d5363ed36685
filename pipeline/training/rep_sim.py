"""rep_sim on held-out images: how like each teacher's maps the student's are (Table 3's row)."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.cache.batches import FeatureBatches
from pipeline.cache.cache import FeatureCache
from pipeline.cache.order import ReadingOrder
from pipeline.data.distill_batch import join
from pipeline.data.loading import load_batches
from pipeline.data.view_images import ViewDataset, Wanted
from sak.features import FeatureMaps
from sak.losses.distillation import image_similarities
from sak.losses.standardise import Standardiser

BATCH = 32


@torch.no_grad()
def mean_similarities(
    cache: FeatureCache,
    accelerator: Accelerator,
    workers: int,
    model: nn.Module,
    step: int,
    *,
    standardised: Mapping[str, Sequence[Standardiser]] | None = None,
) -> Mapping[str, float]:
    """Map cosine after the loss's own resize, the mean over view 0's images: by teacher and level, and of all.

    Every image counts once, whatever the number of processes. A student of `standardised` targets is measured in its
    teachers' own units.
    """
    del step
    ranks = accelerator.num_processes
    order = ReadingOrder(
        BATCH * ranks, block=cache.block, shuffle=False, drop_last=False, rank=accelerator.process_index, ranks=ranks
    )
    features = FeatureBatches(cache, order, pin=accelerator.device.type == "cuda")
    wanted = (Wanted(features.part(0, number).samples.tolist(), 0, 0) for number in range(features.batches_in(0)))
    dataset = ViewDataset(cache.universe, cache.view_policy)
    images = load_batches(dataset, wanted, workers=workers, pin=accelerator.device.type == "cuda")
    totals: dict[str, torch.Tensor] = {}
    for encoded in features:
        batch = join(next(images), encoded, accelerator.device)
        counted = torch.from_numpy(encoded.mask).to(accelerator.device)
        output = model(batch.inputs, tasks=())
        for teacher, targets in batch.targets.items():
            answers = own_units(output.teachers[teacher], (standardised or {}).get(teacher))
            similar = image_similarities(answers, targets)[counted].double()
            totals[teacher] = totals.get(teacher, similar.new_zeros(similar.shape[1])) + similar.sum(0)
        batch.release()
    count = len(cache.samples_in(0))
    summed = {teacher: accelerator.reduce(total, "sum") / count for teacher, total in totals.items()}
    values = {
        f"rep_sim/{teacher}/level{block}": float(similar)
        for teacher, levels in summed.items()
        for block, similar in zip(cache.readers[teacher].levels, levels, strict=True)
    }
    means = {f"rep_sim/{teacher}": float(levels.mean()) for teacher, levels in summed.items()}
    return {"rep_sim": sum(means.values()) / len(means), **means, **values}


def own_units(answers: FeatureMaps, scales: Sequence[Standardiser] | None) -> FeatureMaps:
    """Answers to standardised targets as the teacher would say them; the answers themselves without `scales`."""
    if scales is None:
        return answers
    maps = tuple(scale.invert(map_) for scale, map_ in zip(scales, answers, strict=True))
    return FeatureMaps(answers.levels, maps)
