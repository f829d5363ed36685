import multiprocessing
import os
import subprocess
import sys
import tarfile
from hashlib import sha256

import numpy as np
import pytest
from torchvision import transforms

from pipeline.images.access import ImageAccess, decode_rgb
from pipeline.images.build import build_index
from pipeline.images.index import ShardIndex
from pipeline.images.source import ShardError
from pipeline.images.views import ViewPolicy, make_view, pixel_crc, render, replay

POLICY = ViewPolicy(kind="random_resized_crop", size=64, seed=11)


@pytest.fixture(scope="module")
def index(test_data):
    return build_index(f"{test_data}/imagenet-sample/train-{{000000..000003}}.tar")


def test_all_real_shards_index_as_tarfile_reads_them(index, test_data):
    expected, labels = {}, {}
    for path in sorted((test_data / "imagenet-sample").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".")
                data = tar.extractfile(member).read()
                if suffix == "cls":
                    labels[key] = int(data)
                else:
                    expected[key] = (path.name, member.offset_data, member.size, sha256(data).digest())
    assert len(index) == 250
    assert index.keys() == list(expected)
    for row, (key, (shard, offset, size, digest)) in enumerate(expected.items()):
        place = index.byte_range(row)
        assert (place.file, place.offset, place.size, index.digest(row)) == (shard, offset, size, digest)
        assert index.label(row) == labels[key]
    assert (len(index.shards), len(set(labels.values())), index.suffixes) == (4, 250, (".jpg",))
    assert index.data_key() == "91d03820fe367428ece8a157712be5cf18037b3d6769c81358347ce9b8f2fbcd"


def test_every_real_image_decodes_and_replays_in_every_policy(index):
    access = ImageAccess(index, verify=True)
    evaluation = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64)])
    centre = ViewPolicy(kind="center_crop", size=64)
    grey = 0
    for row, key in enumerate(index.keys()):
        image = decode_rgb(access.read(row))
        view = make_view(POLICY, key, 1, image.size)
        pixels = render(image, view)
        assert np.array_equal(replay(decode_rgb(access.read(row)), view, pixel_crc(pixels), key=key), pixels)
        cropped = render(image, make_view(centre, key, 0, image.size))
        assert np.array_equal(cropped, np.asarray(evaluation(image)))
        grey += bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    assert grey >= 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_make_the_same_views_and_pixels(index, method):
    access = ImageAccess(index)
    images = [decode_rgb(access.read(row)) for row in range(6)]
    wanted = [(POLICY, index.key(row), number, image.size) for row, image in enumerate(images) for number in (0, 3)]
    views = [make_view(*each) for each in wanted]
    pairs = [(images[place // 2], view) for place, view in enumerate(views)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(make_view, wanted) == views
        pixels = pool.starmap(render, pairs)
    assert [pixel_crc(each) for each in pixels] == [pixel_crc(render(*pair)) for pair in pairs]


def test_views_do_not_depend_on_pythons_hash_seed(index, tmp_path):
    index.save(tmp_path / "images.index")
    script = f"""
from pipeline.images.index import ShardIndex
from pipeline.images.views import ViewPolicy, make_view
index = ShardIndex.open({str(tmp_path / "images.index")!r})
policy = ViewPolicy(kind="random_resized_crop", size=64, seed=11)
print([make_view(policy, key, 2, (500, 375)) for key in index.keys()[:20]], index.data_key())
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    here = [make_view(POLICY, key, 2, (500, 375)) for key in index.keys()[:20]]
    assert printed[0] == printed[1] == f"{here} {index.data_key()}\n".encode()


def test_a_saved_index_of_the_real_shards_reads_images(index, tmp_path):
    index.save(tmp_path / "images.index")
    access = ImageAccess(ShardIndex.open(tmp_path / "images.index"), verify=True)
    for row in (249, 0, 130):
        assert decode_rgb(access.read(row)).mode == "RGB"


@pytest.mark.parametrize("kept", [0.001, 0.37, 0.93])
def test_a_real_shard_cut_anywhere_is_reported_by_name(test_data, tmp_path, kept):
    data = (test_data / "imagenet-sample/train-000003.tar").read_bytes()
    (tmp_path / "train-000003.tar").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ShardError, match=r"^train-000003.tar: .*it is cut$"):
        build_index(str(tmp_path))
