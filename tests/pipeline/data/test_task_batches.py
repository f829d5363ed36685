"""Training batches of labelled images: a pure function of seed and step, whatever the processes and workers."""

from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pytest
import torch

from pipeline.data.label_files import DataError
from pipeline.data.sample import TaskSample
from pipeline.data.task_batches import TaskBatches, gate_noise
from sak.errors import SakError, UsageError
from sak.student.build import multi_task_baseline, new_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize


@dataclass
class Toy:
    """Ten images of 40 x 48 with two tasks; image `broken` cannot be read."""

    tasks: tuple[str, ...] = ("semseg", "depth")
    broken: int | None = None
    lacking: int | None = None
    read: list = field(default_factory=list)

    def __len__(self):
        return 10

    def name(self, index):
        return f"im{index}"

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.broken:
            raise DataError(f"im{index}.png is missing")
        rng = np.random.default_rng(index)
        labels = {task: rng.integers(1, 5, (40, 48, 1)).astype(np.float32) for task in self.tasks}
        if index == self.lacking:
            del labels["depth"]
        return TaskSample(f"im{index}", rng.uniform(0, 255, (40, 48, 3)).astype(np.float32), labels, (40, 48))


def batches(dataset=None, **more):
    options = {"indices": tuple(range(10)), "size": (32, 32), "batch_size": 4, "seed": 7, **more}
    return TaskBatches(dataset or Toy(), device=torch.device("cpu"), **options)


def taken(source, first, count):
    return list(islice(source.start_at(first), count))


def test_starting_at_a_step_gives_what_a_straight_run_gives_there():
    straight = taken(batches(), 0, 6)
    for first in (1, 2, 5):
        (batch,) = taken(batches(), first, 1)
        assert batch.keys == straight[first].keys
        assert torch.equal(batch.images, straight[first].images)
        assert all(torch.equal(batch.labels[task], straight[first].labels[task]) for task in ("semseg", "depth"))


def test_an_epoch_shows_an_image_at_most_once_and_the_next_another_order_and_crop():
    made = taken(batches(), 0, 4)
    assert batches().steps_per_epoch == 2
    epochs = [[key for batch in made[n : n + 2] for key in batch.keys] for n in (0, 2)]
    assert all(len(set(keys)) == 8 for keys in epochs)
    assert epochs[0] != epochs[1]
    pixels = {key: image for batch in made[:2] for key, image in zip(batch.keys, batch.images, strict=True)}
    again = [(key, image) for batch in made[2:] for key, image in zip(batch.keys, batch.images, strict=True)]
    assert not any(torch.equal(image, pixels[key]) for key, image in again if key in pixels)


def test_processes_share_the_batches_of_one():
    whole = taken(batches(), 0, 5)
    parts = [taken(batches(rank=rank, ranks=2), 0, 5) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert [*parts[0][step].keys, *parts[1][step].keys] == list(batch.keys)
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)


@pytest.mark.slow
def test_workers_give_the_same_batches():
    plain, loaded = taken(batches(), 1, 3), taken(batches(workers=1), 1, 3)
    assert all(torch.equal(mine.images, theirs.images) for mine, theirs in zip(loaded, plain, strict=True))


def test_parts_are_rows_of_the_whole_and_the_teachers_run_once():
    asked = []

    def teachers(images):
        asked.append(len(images))
        return {}

    config = StudentConfig((32, 32), StemSize(8, 4, 2), "random:0", teachers={"t": 8}, tasks={"depth": 1})
    (batch,) = taken(batches(teachers=teachers, draw=gate_noise(new_student(config), 7)), 0, 1)
    first, second = batch.split(2)
    assert torch.equal(torch.cat([first.images, second.images]), batch.images)
    assert torch.equal(torch.cat([first.noise[4]["depth"], second.noise[4]["depth"]]), batch.noise[4]["depth"])
    assert (asked, [*first.keys, *second.keys]) == ([4], list(batch.keys))


def test_noise_follows_from_seed_epoch_and_name_alone():
    config = StudentConfig((32, 48), StemSize(8, 4, 2), "random:0", teachers={"t": 8}, tasks={"depth": 1, "edge": 1})
    draw = gate_noise(new_student(config), 7)
    one, both = draw(["a"], 0), draw(["b", "a"], 0)
    assert torch.equal(one[2]["edge"][0], both[2]["edge"][1])
    assert one[2]["edge"].shape == (1, 2)
    drawn = [
        one[2]["edge"],
        one[2]["depth"],
        one[3]["edge"],
        draw(["a"], 1)[2]["edge"],
        gate_noise(new_student(config), 8)(["a"], 0)[2]["edge"],
    ]
    assert len({tuple(values.flatten().tolist()) for values in drawn}) == len(drawn)
    pixel = StudentConfig(**{**vars(config), "gate_noise": "pixel"})
    assert gate_noise(new_student(pixel), 7)(["a", "b"], 0)[4]["depth"].shape == (2, 2, 2, 3)
    many = torch.stack([draw([f"i{n}"], 0)[1]["edge"] for n in range(500)])
    assert abs(float(many.mean())) < 0.1
    assert abs(float(many.std()) - 1) < 0.1
    assert gate_noise(new_student(multi_task_baseline(config)), 7) is None


def test_what_cannot_be_read_or_batched_is_one_line():
    with pytest.raises(SakError, match=r"im3\.png is missing"):
        taken(batches(Toy(broken=3)), 0, 12)
    with pytest.raises(SakError, match=r"image im3 has no label of depth; leave it out with --tasks"):
        taken(batches(Toy(lacking=3)), 0, 12)
    with pytest.raises(UsageError, match="10 training images make no batch of 11"):
        batches(batch_size=11)
    with pytest.raises(UsageError, match="a batch of 4 does not divide among 3 processes"):
        batches(ranks=3)
    assert "data.workers (0)" in batches().remedy()
