import torch
import torch.nn.functional as F

from sak.features import FeatureMaps
from sak.student.heads import SimpleHead


def features(levels=3, grid=(2, 5)):
    return FeatureMaps(tuple(range(1, levels + 1)), tuple(torch.randn(2, 8, *grid) for _ in range(levels)))


@torch.no_grad()
def test_the_head_is_the_papers_simple_head():
    head, maps = SimpleHead(width=8, levels=3, channels=5).eval(), features()
    reduced = [
        torch.einsum("oc,bchw->bohw", linear.weight, map_) + linear.bias[:, None, None]
        for linear, map_ in zip(head.linears, maps, strict=True)
    ]
    larger = torch.cat([F.interpolate(x, (8, 20), mode="bilinear", align_corners=False) for x in reduced], dim=1)
    convolution, norm = head.fuse
    fused = F.conv2d(larger, convolution.weight, convolution.bias, padding=1)
    normed = fused / (1 + norm.eps) ** 0.5
    expected = F.conv2d(F.gelu(normed), head.out.weight, head.out.bias)
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-5)


def test_the_prediction_has_four_times_the_grid():
    assert SimpleHead(width=8, levels=2, channels=1)(features(levels=2, grid=(3, 4))).shape == (2, 1, 12, 16)


def test_batch_statistics_are_gathered_in_training_alone():
    head = SimpleHead(width=8, levels=1, channels=1)
    head.eval()(features(levels=1))
    assert head.fuse[1].num_batches_tracked == 0
    head.train()(features(levels=1))
    assert head.fuse[1].num_batches_tracked == 1
