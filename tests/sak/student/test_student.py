from dataclasses import replace

import pytest
import torch

from sak.errors import UsageError
from sak.features import FeatureMaps, map_to_tokens
from sak.student.build import build_student, many_to_one, multi_task_baseline, parameter_counts, single_task_baseline


@torch.no_grad()
def test_the_output_has_every_part_by_name(tiny, images):
    student = build_student(tiny).eval()
    output = student(images)
    assert output.tas.levels == (1, 2, 3, 4)
    assert (output.tas.width, output.tas.grid) == (24, (3, 4))
    assert {name: maps.width for name, maps in output.paths.items()} == {"dinov2": 24, "clip": 24, "sam": 24}
    assert {name: maps.width for name, maps in output.teachers.items()} == {"dinov2": 32, "clip": 24, "sam": 16}
    assert {name: tuple(value.shape) for name, value in output.tasks.items()} == {
        "semseg": (2, 5, 48, 64),
        "depth": (2, 1, 48, 64),
    }
    assert {level: set(gates) for level, gates in output.gates.items()} == {
        level: {"semseg", "depth"} for level in (1, 2, 3, 4)
    }


@torch.no_grad()
def test_the_stem_expert_is_not_normalised_and_the_paths_are(tiny, images):
    student = build_student(tiny).eval()
    output = student(images)
    patches = student.stem(images)[3][:, 1:]
    assert torch.equal(map_to_tokens(output.tas[3]), patches)
    path = map_to_tokens(output.paths["clip"][3])
    torch.testing.assert_close(path.mean(-1), torch.zeros(2, 12), rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_aligners_the_distillation_sees_the_paths_themselves(tiny, images):
    output = build_student(replace(tiny, teachers={"a": 24, "b": 24})).eval()(images)
    for teacher, maps in output.teachers.items():
        assert all(torch.equal(one, other) for one, other in zip(maps, output.paths[teacher], strict=True))


@torch.no_grad()
def test_evaluation_is_deterministic_and_training_is_not(tiny, images):
    student = build_student(tiny)
    first, second = student.eval()(images), student(images)
    assert torch.equal(first.tasks["semseg"], second.tasks["semseg"])
    gates = [student.train()(images).gates[2]["depth"] for _ in range(2)]
    assert not torch.equal(*gates)


@torch.no_grad()
def test_a_generator_fixes_the_noise_which_differs_between_levels_and_tasks(tiny, images):
    student = build_student(tiny).train()
    one, other = (student(images, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    logits = [gate.log() for level in one.gates.values() for gate in level.values()]
    assert all(
        torch.equal(gate, other.gates[level][task]) for level, per in one.gates.items() for task, gate in per.items()
    )
    assert not any(torch.equal(a, b) for i, a in enumerate(logits) for b in logits[:i])


@pytest.mark.parametrize(("kind", "shape"), [("image", (2, 4)), ("pixel", (2, 4, 3, 4))])
@torch.no_grad()
def test_the_noise_in_training_is_the_one_asked_for(tiny, images, kind, shape):
    student = build_student(replace(tiny, gate_noise=kind)).train()
    output = student(images)
    assert {tuple(gate.shape) for gates in output.gates.values() for gate in gates.values()} == {shape}
    noise = {level: {task: torch.randn(shape) for task in tiny.tasks} for level in (1, 2, 3, 4)}
    output = student(images, noise=noise)
    router = student.routers["2"]["depth"]
    expected = router(map_to_tokens(output.tas[2]), noise[2]["depth"])
    torch.testing.assert_close(output.gates[2]["depth"], expected)


@torch.no_grad()
def test_the_noise_drawn_has_mean_zero_and_deviation_one(tiny):
    student = build_student(replace(tiny, tasks={"depth": 1}, gate_noise="pixel")).train()
    images = torch.randn(1, 3, 48, 64).expand(64, 3, 48, 64)
    clean, raw = student.routers["1"]["depth"].logits(student.stem(images)[1][:, 1:]).chunk(2, dim=1)
    log_gates = student(images).gates[1]["depth"].log()
    spread = torch.nn.functional.softplus(raw) + 0.01
    between = (log_gates[:, 0] - log_gates[:, 1]) - (clean[:, :1, None] - clean[:, 1:2, None])
    scaled = between / (spread[:, 0] ** 2 + spread[:, 1] ** 2).sqrt()[:, None, None]
    assert scaled.mean().item() == pytest.approx(0, abs=0.12)
    assert scaled.std().item() == pytest.approx(1, abs=0.1)


@torch.no_grad()
def test_only_the_tasks_asked_for_are_computed_and_in_that_order(tiny, images):
    student = build_student(tiny).eval()
    everything = student(images)
    assert list(student(images, tasks=("depth", "semseg")).tasks) == ["depth", "semseg"]
    one = student(images, tasks=("depth",))
    torch.testing.assert_close(one.tasks["depth"], everything.tasks["depth"])
    assert set(one.gates[1]) == {"depth"}
    none = student(images, tasks=())
    assert (none.tasks, none.gates) == ({}, {})
    assert set(none.teachers) == set(tiny.teachers)


@torch.no_grad()
def test_sum_fusion_adds_the_teachers_paths_and_not_the_stem(tiny, images):
    student = build_student(replace(tiny, fusion="sum")).eval()
    output = student(images)
    summed = [sum(maps[level] for maps in output.paths.values()) for level in output.tas.levels]
    assert output.gates == {}
    assert parameter_counts(student)["MoR"] == 0
    expected = student.heads["depth"](FeatureMaps(output.tas.levels, tuple(summed)))
    assert expected.shape == (2, 1, 12, 16)
    torch.testing.assert_close(
        output.tasks["depth"],
        torch.nn.functional.interpolate(expected, (48, 64), mode="bilinear", align_corners=False),
    )


@torch.no_grad()
def test_the_many_to_one_student_is_a_stem_with_linear_aligners(tiny, images):
    student = build_student(many_to_one(tiny)).eval()
    output = student(images)
    counts = parameter_counts(student)
    assert (counts["TSAP"], counts["TSAP_out_norms"], counts["MoR"]) == (0, 0, 0)
    assert counts["aligners"] == 4 * sum(25 * width for width in (32, 24, 16))
    assert {name: maps.width for name, maps in output.teachers.items()} == {"dinov2": 32, "clip": 24, "sam": 16}
    aligned = student.aligners["2"]["sam"](map_to_tokens(output.tas[2]))
    torch.testing.assert_close(map_to_tokens(output.teachers["sam"][2]), aligned)
    assert set(output.tasks) == {"semseg", "depth"}


@torch.no_grad()
def test_the_multi_task_baseline_is_a_stem_with_heads(tiny, images):
    student = build_student(multi_task_baseline(tiny)).eval()
    output = student(images)
    assert (output.paths, output.teachers, output.gates) == ({}, {}, {})
    counts = parameter_counts(student)
    assert counts["total"] == counts["TAS"] + counts["heads"]
    assert set(build_student(single_task_baseline(tiny, "depth")).eval()(images).tasks) == {"depth"}


def test_baselines_start_from_the_same_stem(tiny):
    stems = [build_student(config(tiny)).stem.state_dict() for config in (many_to_one, multi_task_baseline)]
    for key, value in build_student(tiny).stem.state_dict().items():
        assert all(torch.equal(value, stem[key]) for stem in stems)


def test_one_teachers_loss_gives_no_gradient_to_another_teachers_parts(tiny, images):
    student = build_student(tiny).train()
    output = student(images)
    sum(map_.square().mean() for map_ in output.teachers["clip"]).backward()
    for name, parameter in student.named_parameters():
        gradient = parameter.grad is not None and bool(parameter.grad.any())
        belongs = name.startswith(("stem.", "paths.clip.")) or (
            ".clip." in name and name.startswith(("norms", "aligners"))
        )
        assert gradient == belongs, name


def test_every_parameter_learns_from_all_losses_together(tiny, images):
    student = build_student(tiny).train()
    output = student(images)
    outputs = [*output.tasks.values(), *(map_ for maps in output.teachers.values() for map_ in maps)]
    sum((value.sin() * torch.randn_like(value)).sum() for value in outputs).backward()
    silent = [
        name for name, parameter in student.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def trainable(student):
    return {name.split(".")[0] for name, parameter in student.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("none", {"stem", "paths", "norms", "aligners", "routers", "heads"}),
        ("stem", {"paths", "norms", "aligners", "routers", "heads"}),
        ("all-but-routers", {"routers"}),
    ],
)
def test_what_is_frozen_does_not_move(tiny, images, freeze, expected):
    student = build_student(replace(tiny, freeze=freeze)).train()
    assert trainable(student) == expected
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimiser = torch.optim.SGD([parameter for parameter in student.parameters() if parameter.requires_grad], lr=0.1)
    output = student(images)
    (sum(value.square().mean() for value in output.tasks.values()) + output.teachers["sam"].maps[0].mean()).backward()
    optimiser.step()
    moved = {name.split(".")[0] for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= expected
    assert "routers" in moved


def test_gradient_checkpointing_changes_no_number(tiny, images):
    results = []
    for again in (False, True):
        student = build_student(replace(tiny, gradient_checkpointing=again)).train()
        output = student(images, generator=torch.Generator().manual_seed(1))
        sum(value.square().mean() for value in output.tasks.values()).backward()
        results.append([parameter.grad for parameter in student.parameters() if parameter.grad is not None])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_in_bfloat16_trains_and_stays_near_float32(tiny, images):
    student = build_student(tiny).train()
    exact = student.eval()(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = student(images)
    for task, prediction in exact.tasks.items():
        assert (rounded.tasks[task].float() - prediction).norm() < 0.05 * prediction.norm()
    assert rounded.gates[1]["depth"].dtype == torch.float32
    assert rounded.tas.maps[-1].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        output = student.train()(images)
    sum(value.float().square().mean() for value in output.tasks.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters() if parameter.grad is not None)


@torch.no_grad()
def test_a_student_cast_to_bfloat16_stays_near_float32(tiny, images):
    student = build_student(tiny).eval()
    exact = student(images).tasks["semseg"]
    rounded = student.bfloat16()(images.bfloat16()).tasks["semseg"]
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("size", [(16, 16), (96, 32), (32, 96), (80, 80)])
@torch.no_grad()
def test_any_image_size_in_patches_will_do(tiny, size):
    output = build_student(replace(tiny, image_size=size)).eval()(torch.randn(1, 3, *size))
    assert output.tasks["semseg"].shape == (1, 5, *size)
    assert output.tas.grid == (size[0] // 16, size[1] // 16)


@torch.no_grad()
def test_a_student_of_fewer_levels_has_heads_of_fewer_levels(tiny, images):
    student = build_student(replace(tiny, levels=(2, 4))).eval()
    output = student(images)
    assert output.tas.levels == (2, 4)
    assert set(output.gates) == {2, 4}
    assert student.heads["depth"].fuse[0].in_channels == 12


@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (2, 4, 48, 64), (3, 48, 64)])
def test_images_of_another_size_are_refused(tiny, shape):
    with pytest.raises(UsageError, match=r"takes \(B, 3, 48, 64\) images, got"):
        build_student(tiny)(torch.zeros(shape))


def test_an_unknown_task_names_the_nearest_one(tiny, images):
    with pytest.raises(UsageError, match="no task 'dept'; did you mean 'depth'"):
        build_student(tiny)(images, tasks=("dept",))


def test_noise_that_leaves_out_a_level_or_task_is_refused(tiny, images):
    student = build_student(tiny).train()
    with pytest.raises(UsageError, match="no noise for level 1, "):
        student(images, noise={2: {}})


def test_bytes_are_refused_as_images(tiny, images):
    with pytest.raises(UsageError, match=r"normalised float images, got torch\.uint8"):
        build_student(tiny)(images.byte())


def test_noise_in_evaluation_is_refused(tiny, images):
    with pytest.raises(UsageError, match="no noise in evaluation"):
        build_student(tiny).eval()(images, noise={})


def test_noise_of_another_kind_is_refused(tiny, images):
    noise = {level: dict.fromkeys(tiny.tasks, torch.zeros(2, 4, 3, 4)) for level in (1, 2, 3, 4)}
    with pytest.raises(
        UsageError, match=r"noise of level 1, semseg is \(2, 4, 3, 4\); gate_noise 'image' needs \(2, 4\)"
    ):
        build_student(tiny)(images, noise=noise)
