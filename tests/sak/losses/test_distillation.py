"""The distillation loss against the reference, and its promises."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.losses.distillation import DistillationLoss, _Root, image_similarities, rep_sim
from sak.losses.projection import ProjectedTarget, TargetMaps, project

TEACHERS = ("dinov2", "clip", "sam")
CASES = ("t7_s6", "t16_s6", "equal", "t5_s6", "t7x9_s6x8", "t6x9_s6x6", "t10_s6x8")
KINDS = ("cos+l1", "cos", "l2")
LEVELS = (3, 6, 9, 12)
RECORDED = ("level1", "level2", "level3", "level4")  # the reference counts them by place


@pytest.fixture(scope="module")
def reference(golden):
    folder = golden / "sak"
    return load_file(folder / "03_distill_loss.safetensors"), json.loads((folder / "03_distill_loss.json").read_text())


def _maps(tensors, case, side, dtype, *, grad=False):
    def one(teacher, level):
        return tensors[f"{case}.{side}.{teacher}.level{level}"].to(dtype, copy=True).requires_grad_(grad)

    return {name: FeatureMaps(LEVELS, tuple(one(name, level) for level in range(1, 5))) for name in TEACHERS}


def _recorded(name):
    """`dinov2/level9` as the reference calls it, `dinov2_level3`."""
    teacher, _, level = name.partition("/level")
    return f"{teacher}_{RECORDED[LEVELS.index(int(level))]}"


def _random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _one(map_):
    return {"a": FeatureMaps((3,), (map_,))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("f64", torch.float64, 1e-10), ("f32", torch.float32, 1e-5)])
def test_losses_are_the_references_level_by_level(reference, case, kind, name, dtype, tolerance):
    tensors, told = reference
    losses = DistillationLoss(kind)(_maps(tensors, case, "stu", dtype), _maps(tensors, case, "tea", dtype))
    expected = told["losses"][case][kind][name]
    found = {_recorded(key): value.item() for key, value in losses.by_level().items()}
    found["total"] = losses.total.item()
    assert found == pytest.approx(expected, rel=tolerance, abs=0)
    assert losses.total.dtype == dtype


def _gradients(tensors, case, kind, dtype):
    """`<teacher>.level<l>` -> gradient of the total."""
    student = _maps(tensors, case, "stu", dtype, grad=True)
    DistillationLoss(kind)(student, _maps(tensors, case, "tea", dtype)).total.backward()
    return {
        f"{name}.{level}": map_.grad
        for name, maps in student.items()
        for level, map_ in zip(RECORDED, maps, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_references(reference, case, kind):
    tensors, _ = reference
    for name, gradient in _gradients(tensors, case, kind, torch.float32).items():
        expected = tensors[f"{case}.grad.{kind}.{name}"]
        assert (gradient - expected).abs().max() <= 1e-7 * expected.abs().max(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_float64_gradients_differ_from_the_references_by_what_float32_rounds_away(reference, case, kind):
    """The reference's are those of its float32 run, which float32 reproduces."""
    tensors, _ = reference
    rounded = _gradients(tensors, case, kind, torch.float32)
    for name, gradient in _gradients(tensors, case, kind, torch.float64).items():
        expected = tensors[f"{case}.grad.{kind}.{name}"]
        bound = (gradient - rounded[name]).abs().max() + 1e-7 * expected.abs().max()
        assert (gradient - expected).abs().max() <= bound, name
        assert bound <= 1e-6 * expected.abs().max(), name


def test_the_root_in_the_cosine_is_the_nearest_float32_and_its_gradient_is_that_of_sqrt():
    squared = torch.rand(2000, generator=torch.Generator().manual_seed(0)).mul(1e5).requires_grad_()
    root = _Root.apply(squared)
    assert torch.equal(root, squared.double().sqrt().float())
    root.sum().backward()
    assert torch.equal(squared.grad, 1 / (2 * root))


@pytest.mark.parametrize("kind", ["cos", "l2"])
@pytest.mark.parametrize("case", ["t7_s6", "t16_s6", "t7x9_s6x8", "t10_s6x8"])
def test_projected_targets_give_the_references_losses_too(reference, case, kind):
    tensors, told = reference
    student = _maps(tensors, case, "stu", torch.float64, grad=True)
    grid = student["sam"].grid
    targets = {
        name: TargetMaps(LEVELS, tuple(project(map_, grid) for map_ in maps))
        for name, maps in _maps(tensors, case, "tea", torch.float64).items()
    }
    losses = DistillationLoss(kind)(student, targets)
    losses.total.backward()
    expected = told["losses"][case][kind]["f64"]
    found = {_recorded(key): value.item() for key, value in losses.by_level().items()}
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-10, abs=0)
    gradients = _gradients(tensors, case, kind, torch.float64)
    for name, maps in student.items():
        for level, map_ in zip(RECORDED, maps, strict=True):
            expected_gradient = gradients[f"{name}.{level}"]
            assert (map_.grad - expected_gradient).abs().max() <= 1e-12 * expected_gradient.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(3, 4), (2, 5), (5, 7)])
def test_gradcheck_in_float64(kind, grid):
    teacher = _random(2, 3, *grid, seed=1)
    student = _random(2, 3, 3, 4, seed=2).requires_grad_()

    def loss(map_):
        return DistillationLoss(kind)(_one(map_), _one(teacher)).total

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_against_a_projection_in_float64(kind):
    target = {"a": TargetMaps((3,), (project(_random(2, 3, 5, 7, seed=1), (3, 4)),))}
    student = _random(2, 3, 3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda map_: DistillationLoss(kind)(_one(map_), target).total, (student,))


def test_token_cosine_is_the_mean_over_positions():
    student, teacher = _random(2, 5, 4, 4), _random(2, 5, 4, 4, seed=1)
    losses = DistillationLoss("cos", "token")(_one(student), _one(teacher))
    expected = 1 - torch.cosine_similarity(student, teacher, dim=1).mean()
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)
    of_maps = DistillationLoss("cos")(_one(student), _one(teacher)).total
    assert abs(of_maps.item() - expected.item()) > 1e-4


def test_token_cosine_resizes_as_the_map_cosine_does():
    student, teacher = _random(2, 5, 4, 4), _random(2, 5, 7, 7, seed=1)
    resized = torch.nn.functional.interpolate(student, (7, 7), mode="bilinear", align_corners=False)
    expected = 1 - torch.cosine_similarity(resized, teacher, dim=1).mean()
    found = DistillationLoss("cos", "token")(_one(student), _one(teacher)).total
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_parts_and_weights_make_the_total():
    student, teacher = _random(2, 5, 4, 4), 3 * _random(2, 5, 4, 4, seed=1)
    loss = DistillationLoss(cosine_weight=0.7, l1_weight=0.2, weights={"a": 2.5})
    level = loss(_one(student), _one(teacher)).teachers["a"][0]
    assert level.total.item() == pytest.approx(2.5 * (0.7 * level.cosine.item() + 0.2 * level.smooth_l1.item()))
    assert level.smooth_l1.item() == pytest.approx(torch.nn.functional.smooth_l1_loss(student, teacher).item())
    assert level.squared.item() == level.leftover.item() == 0


def test_one_teachers_loss_has_no_gradient_for_another():
    first, second = _random(2, 5, 4, 4).requires_grad_(), _random(2, 5, 4, 4, seed=1).requires_grad_()
    student = {"a": FeatureMaps((3,), (first,)), "b": FeatureMaps((3,), (second,))}
    targets = {name: FeatureMaps((3,), (_random(2, 5, 6, 6, seed=2),)) for name in "ab"}
    losses = DistillationLoss()(student, targets)
    losses.teachers["a"][0].total.backward()
    assert first.grad.abs().max() > 0
    assert second.grad is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_loss_is_float32_for_half_precision_maps_and_under_autocast(half):
    student, teacher = _random(2, 5, 4, 4).to(half), _random(2, 5, 6, 6, seed=1).to(half)
    expected = DistillationLoss()(_one(student.float()), _one(teacher.float())).total
    with torch.autocast("cpu", torch.bfloat16):
        found = DistillationLoss()(_one(student), _one(teacher)).total
    assert found.dtype == torch.float32
    assert found == expected


def test_autocast_leaves_the_loss_on_a_projection_as_it_is():
    target = {"a": TargetMaps((3,), (project(_random(2, 5, 9, 9, dtype=torch.float32), (4, 4)),))}
    student = _random(2, 5, 4, 4, seed=1, dtype=torch.float32)
    expected = DistillationLoss()(_one(student), target).total
    with torch.autocast("cpu", torch.bfloat16):
        assert DistillationLoss()(_one(student), target).total == expected


def test_a_zero_map_has_distance_one_and_finite_gradients():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    losses = DistillationLoss()(_one(student), _one(_random(2, 3, 6, 6, dtype=torch.float32)))
    losses.total.backward()
    assert losses.teachers["a"][0].cosine == 1
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("own", [(4, 4), (4, 5)])
def test_the_loss_is_one_graph_for_the_compiler_and_float32_in_its_autocast(projected, own):
    teacher = _random(2, 3, 6, 6, dtype=torch.float32)
    targets = {"a": TargetMaps((3,), (project(teacher, own) if projected else teacher,))}
    student = _random(2, 3, *own, seed=1, dtype=torch.float32).requires_grad_()

    def loss(map_):
        return DistillationLoss()(_one(map_), targets).total

    expected = loss(student)
    (gradient,) = torch.autograd.grad(expected, student)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(loss, backend="aot_eager", fullgraph=True)(student)
    (compiled,) = torch.autograd.grad(found, student)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(compiled, gradient, rtol=1e-5, atol=1e-8)


def test_rep_sim_is_one_minus_the_map_cosine_whatever_the_loss(reference):
    tensors, told = reference
    student = _maps(tensors, "t10_s6x8", "stu", torch.float64)["sam"]
    teacher = _maps(tensors, "t10_s6x8", "tea", torch.float64)["sam"]
    expected = [1 - told["losses"]["t10_s6x8"]["cos"]["f64"][f"sam_level{level}"] for level in range(1, 5)]
    assert rep_sim(student, teacher).tolist() == pytest.approx(expected, rel=1e-10)
    projected = TargetMaps(LEVELS, tuple(project(map_, student.grid) for map_ in teacher))
    assert rep_sim(student, projected).tolist() == pytest.approx(expected, rel=1e-10)


def test_similarities_come_image_by_image_so_that_padding_can_be_left_out():
    student = FeatureMaps((3, 6), (_random(3, 5, 4, 4), _random(3, 5, 4, 4, seed=1)))
    teacher = FeatureMaps((3, 6), (_random(3, 5, 7, 7, seed=2), _random(3, 5, 7, 7, seed=3)))
    of_images = image_similarities(student, teacher)
    assert of_images.shape == (3, 2)
    alone = image_similarities(student.apply(lambda m: m[1:2]), teacher.apply(lambda m: m[1:2]))
    assert torch.allclose(of_images[1:2], alone)
    assert torch.allclose(of_images.mean(0), rep_sim(student, teacher))


def test_a_projection_made_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        target = project(_random(1, 3, 11, 13), (5, 5))
        rep_sim(FeatureMaps((3,), (_random(1, 3, 5, 5),)), TargetMaps((3,), (target,)))
    target = ProjectedTarget(target.map.clone(), target.leftover.clone(), target.teacher_grid)
    student = _random(1, 3, 5, 5, seed=1).requires_grad_()
    DistillationLoss()(_one(student), {"a": TargetMaps((3,), (target,))}).total.backward()
    assert student.grad.abs().max() > 0


def test_what_does_not_fit_is_refused_by_name():
    map_ = _random(2, 5, 4, 4)
    loss = DistillationLoss()
    with pytest.raises(UsageError, match=r"teachers \['a'\] but there are targets of \['b'\]"):
        loss(_one(map_), {"b": FeatureMaps((3,), (map_,))})
    with pytest.raises(UsageError, match=r"a: the student has levels \(3,\) but the targets \(3, 6\)"):
        loss(_one(map_), {"a": FeatureMaps((3, 6), (map_, map_))})
    with pytest.raises(
        UsageError, match=r"a level3: the student's map is \(2, 5, 4, 4\) and the target \(2, 6, 4, 4\)"
    ):
        loss(_one(map_), _one(_random(2, 6, 4, 4)))
    with pytest.raises(UsageError, match="projected onto a 3x4 grid but the student's is 4x4"):
        loss(_one(map_), {"a": TargetMaps((3,), (project(_random(2, 5, 6, 6), (3, 4)),))})
    with pytest.raises(UsageError, match="token needs every position"):
        DistillationLoss("cos", "token")(_one(map_), {"a": TargetMaps((3,), (project(_random(2, 5, 6, 6), (4, 4)),))})
    with pytest.raises(UsageError, match="no distillation loss 'mse'; known"):
        DistillationLoss("mse")
    with pytest.raises(UsageError, match="no cosine 'tokens'; known: map, token"):
        DistillationLoss("cos", "tokens")
    with pytest.raises(ValueError, match="1 levels"):
        TargetMaps((3,), (map_, map_))
