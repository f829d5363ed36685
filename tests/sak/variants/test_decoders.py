"""The decoders: what makes each what it is, behind one interface."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.student.build import build_student, make_student, multi_task_baseline, parameter_counts
from sak.student.config import StudentConfig
from sak.student.heads import DecoderShape
from sak.tasks import dataset
from sak.variants.decoders import DECODERS
from sak.variants.invpt import InvPTDecoder
from sak.variants.mlore import SIZES, WIDE, LowRankExperts, MLoREDecoder, MLoREModule, imbalance

TASKS = {"semseg": 5, "depth": 1}
LARGE = "vit_large_patch16_384.augreg_in21k_ft_in1k"


def shape(width=16, levels=4, tasks=None):
    return DecoderShape(width, (width,) * levels, 4, tasks or TASKS)


def features(width=16, levels=4, grid=(3, 4)):
    return {task: FeatureMaps(tuple(range(1, levels + 1)), tuple(torch.randn(2, width, *grid) for _ in range(levels)))
            for task in TASKS}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_predicts_each_task_at_a_quarter_of_the_image_and_all_of_it_trains(name):
    decoder = DECODERS[name](shape())
    decoded = decoder(features())
    predictions = decoded.tasks
    assert {task: tuple(map_.shape) for task, map_ in predictions.items()} == {
        "semseg": (2, 5, 12, 16),
        "depth": (2, 1, 12, 16),
    }
    sum(map_.square().mean() for map_ in predictions.values()).backward()
    untouched = [key for key, value in decoder.named_parameters() if value.grad is None]
    assert not untouched


@pytest.mark.parametrize("name", DECODERS)
def test_a_student_has_the_decoder_its_configuration_names_and_keeps_it_in_its_json(tiny, images, name):
    config = replace(tiny, decoder=name)
    assert StudentConfig.from_json(config.to_json()) == config
    student = build_student(config).eval()
    with torch.no_grad():
        whole, one = student(images), student(images, tasks=("depth",))
    assert whole.tasks["semseg"].shape == (2, 5, 48, 64)
    assert list(one.tasks) == ["depth"]
    torch.testing.assert_close(one.tasks["depth"], whole.tasks["depth"])
    assert all(list(gates) == ["depth"] for gates in one.gates.values())


def test_an_unknown_decoder_is_refused_with_those_there_are(tiny):
    with pytest.raises(UsageError, match="decoder must be one of simple, mlore, mlore-wide, invpt, got 'unet'"):
        replace(tiny, decoder="unet")


def test_the_simple_decoder_has_the_keys_that_checkpoints_have(tiny):
    keys = {key for key in build_student(tiny).state_dict() if key.startswith("heads.semseg.")}
    assert {"heads.semseg.linears.0.weight", "heads.semseg.fuse.0.weight", "heads.semseg.out.bias"} <= keys


@torch.no_grad()
def test_each_expert_is_a_convolution_of_its_low_rank():
    experts = LowRankExperts(24, (2, 3, 5))
    for number, rank in enumerate((2, 3, 5)):
        gates = F.one_hot(torch.tensor(number), 3).float()
        kernel = experts.kernel(gates)
        assert kernel.shape == (24, 24, 3, 3)
        assert int(torch.linalg.matrix_rank(kernel.flatten(1))) == rank
    assert sum(value.numel() for value in experts.parameters()) == 10 * 24 * (2 + 3 + 5)


@torch.no_grad()
def test_gated_experts_and_the_generic_path_are_one_convolution():
    """Re-parameterisation, which the paper's linear experts are for."""
    module = MLoREModule(8, ["a"], (2, 3, 4), own_rank=2, chosen=2).eval()
    map_ = torch.randn(1, 8, 5, 6)
    entered = module.enter["a"](map_)
    gates = module.routers["a"](entered)
    kernel = module.generic.weight + module.experts.kernel(gates[0]) + module.own["a"].kernel()
    merged = F.conv2d(entered, kernel, module.generic.bias, padding=1)
    torch.testing.assert_close(module("a", map_), F.gelu(module.norms["a"](merged)), rtol=1e-4, atol=1e-5)


def test_a_task_takes_its_chosen_experts_alone_and_noise_chooses_in_training():
    module = MLoREModule(8, ["a", "b"], (2, 3, 4, 5), own_rank=2, chosen=2)
    map_ = torch.randn(4, 8, 5, 6)
    gates = module.eval().routers["a"](map_)
    assert ((gates > 0).sum(1) == 2).all()
    torch.testing.assert_close(gates.sum(1), torch.ones(4))
    assert not torch.equal(gates, module.routers["b"](map_))
    draws = torch.stack([module.train().routers["a"](map_) for _ in range(20)])
    assert (draws.std(0) > 0).any()


def test_the_generic_path_is_shared_and_each_task_has_its_own_expert():
    module = MLoREModule(8, ["a", "b"], (2, 3), own_rank=2, chosen=1)
    module("a", torch.randn(2, 8, 4, 4)).sum().backward()
    assert module.generic.weight.grad is not None
    assert module.own["a"].down.weight.grad is not None
    assert module.own["b"].down.weight.grad is None


def test_in_invpt_a_tasks_prediction_needs_the_other_tasks_features():
    torch.manual_seed(0)
    decoder = InvPTDecoder(shape()).eval()
    given = features()
    entered = given["depth"].maps[-1].requires_grad_()
    decoder(given).tasks["semseg"].square().sum().backward()
    assert entered.grad is not None
    assert entered.grad.abs().max() > 0
    simple = DECODERS["simple"](shape()).eval()
    entered.grad = None
    simple(given).tasks["semseg"].square().sum().backward()
    assert entered.grad is None


@torch.no_grad()
def test_invpt_grows_its_queries_and_passes_attention_on():
    decoder = InvPTDecoder(shape()).eval()
    given = features(grid=(4, 6))
    now, logits, seen = {task: maps.maps[-1] for task, maps in given.items()}, None, []
    for stage, level in zip(decoder.stages, (2, 1, 0), strict=True):
        now, logits = stage(now, {task: maps.maps[level] for task, maps in given.items()}, logits)
        seen.append((tuple(now["depth"].shape), tuple(logits.shape)))
    keys = 2 * 2 * 3
    assert seen == [
        ((2, 16, 4, 6), (2, 2, 2, 2, 3, keys)),
        ((2, 8, 8, 12), (2, 2, 2, 4, 6, keys)),
        ((2, 4, 16, 24), (2, 2, 2, 8, 12, keys)),
    ]
    before = decoder(given).tasks["depth"]
    decoder.stages[1].passed_weight.fill_(5.0)
    assert not torch.allclose(before, decoder(given).tasks["depth"])


@pytest.mark.parametrize(
    ("name", "data", "decoder", "millions"),
    [
        ("multi-task, Table 5: 357", "pascal-context", "simple", 356.63),
        ("multi-task, Table 6: 346", "nyud", "simple", 346.14),
        ("MLoRE, Table 5: 407", "pascal-context", "mlore", 402.69),
        ("MLoRE at the sizes of PASCAL-Context", "nyud", "mlore", 393.61),
        ("MLoRE, Table 6: 552", "nyud", "mlore-wide", 535.67),
        ("InvPT, Table 5: 423", "pascal-context", "invpt", 431.57),
        ("InvPT, Table 6: 402", "nyud", "invpt", 411.06),
    ],
)
def test_parameters_of_an_l_baseline_with_each_decoder(name, data, decoder, millions):
    """docs/decoders.md explains the differences from the paper's tables."""
    rows = dataset(data)
    config = StudentConfig(image_size=rows.input_size, stem=LARGE, tasks=rows.channels, fusion="none", decoder=decoder)
    with torch.device("meta"):
        counted = parameter_counts(make_student(multi_task_baseline(config)))["total"]
    assert round(counted / 1e6, 2) == millions


def test_mlores_experts_are_the_papers_fifteen():
    for sizes, last in ((SIZES, 128), (WIDE, 240)):
        assert (len(sizes.ranks), sizes.ranks[0], sizes.ranks[-1]) == (15, 16, last)
        decoder = MLoREDecoder(shape(), sizes=sizes)
        assert len(decoder.refine) == 4
        assert all(len(modules) == 2 for modules in decoder.refine)
        assert decoder.refine[0][0].experts.ranks == sizes.ranks
    assert MLoREDecoder(shape(1024), sizes=WIDE).refine[0][0].generic.out_channels == 768


def test_mlores_imbalance_is_nothing_for_equal_shares_and_their_number_for_one_alone():
    assert float(imbalance(torch.full((5,), 0.2))) == pytest.approx(0.0, abs=1e-10)
    assert float(imbalance(F.one_hot(torch.tensor(2), 5).float())) == pytest.approx(5.0)


def test_mlores_imbalance_moves_its_routers_alone_towards_equal_shares_and_is_of_training_alone():
    torch.manual_seed(0)
    decoder = DECODERS["mlore"](shape())
    given = features()
    optimiser = torch.optim.SGD([p for name, p in decoder.named_parameters() if ".routers." in name], lr=0.5)
    seen = []
    for _ in range(20):
        torch.manual_seed(1)  # the same noise, so that the shares alone change
        found = decoder(given).imbalance
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        seen.append(found.item())
    assert seen[-1] < 0.5 * seen[0]
    assert all(p.grad is None for name, p in decoder.named_parameters() if name.startswith("ends."))
    assert decoder.eval()(given).imbalance is None


def test_invpts_preliminary_predictions_are_of_training_alone_on_the_deepest_grid():
    decoder = DECODERS["invpt"](shape())
    found = decoder(features()).preliminary
    assert {task: tuple(map_.shape) for task, map_ in found.items()} == {"semseg": (2, 5, 3, 4), "depth": (2, 1, 3, 4)}
    found["semseg"].sum().backward()
    touched = {name.split(".")[0] for name, p in decoder.named_parameters() if p.grad is not None}
    assert touched == {"preliminary"}
    assert decoder.eval()(features()).preliminary == {}
