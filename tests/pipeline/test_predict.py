"""`sak-cli predict`: pictures of every task for images of any size and kind."""

import numpy as np
import pytest
import torch
from PIL import Image

from cli import main
from pipeline.data.fitted import fit
from pipeline.dense.task_model import TaskModels
from pipeline.images.access import decode_photo
from pipeline.images.source import BadImage
from pipeline.predict import PredictConfig, find, predict
from sak.errors import UsageError
from sak.tasks import NYUD
from tests.pipeline.task_runs import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", "nyud", "nowhere")


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    return Image.fromarray(noise)


def asked(run, *images, out=None, **options):
    return PredictConfig(run, images, out or run.parent / "out", **{"device": "cpu", "workers": 0, **options})


def test_every_task_and_a_panel_are_drawn_at_the_images_own_size(run, photo, tmp_path):
    photo.resize((150, 90)).save(tmp_path / "a.jpg")
    assert predict(asked(run, tmp_path / "a.jpg")).predicted == 1
    out = tmp_path / "out"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    tasks = {f"{task}/a.png" for task in NYUD.names}
    assert written == {*tasks, "depth/a.npy", "panels/a.png"}
    for place in tasks:
        with Image.open(out / place) as image:
            assert image.size == (150, 90)
    assert np.load(out / "depth/a.npy").shape == (90, 150)


def test_a_prediction_is_the_networks_own(run, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    predict(asked(run, tmp_path / "a.png", tasks=("semseg",)))
    networks = TaskModels.load(run)
    fitted = fit(np.asarray(photo).astype(np.float32), networks.size)
    top, left, height, width = fitted.window
    output = networks.predict(torch.from_numpy(fitted.image)[None])["semseg"]
    expected = output[0, :, top : top + height, left : left + width].argmax(0)
    with Image.open(tmp_path / "out/semseg/a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), expected.numpy())
        assert image.getpalette()[:6] == [*NYUD["semseg"].palette[0], *NYUD["semseg"].palette[1]]


@pytest.mark.parametrize("kind", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_image_is_predicted(run, photo, tmp_path, kind):
    path = tmp_path / ("a.tif" if kind == "CMYK" else "a.png")
    if kind == "I;16":
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        photo.convert(kind).save(path)
    assert predict(asked(run, path)).bad == ()


def test_16_bits_become_8_and_exif_turns_the_picture(photo, tmp_path):
    grey = photo.convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    deep = decode_photo((tmp_path / "deep.png").read_bytes())
    np.testing.assert_array_equal(np.asarray(deep.convert("L")), np.asarray(grey))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(decode_photo((tmp_path / "turned.png").read_bytes()))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(photo), -1))
    Image.fromarray(np.ones((20, 20), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(BadImage, match="floating point"):
        decode_photo((tmp_path / "float.tif").read_bytes())


def test_bad_images_are_listed_and_the_others_go_on(run, photo, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    photo.save(folder / "good.png")
    photo.save(folder / "sub/deep.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--workers", "0"])
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert "broken.jpg: not an image" in told
    assert "one.png: 1 x 1 pixels; a prediction needs at least 16 a side" in told
    assert "2 images predicted" in told
    assert "2 could not be predicted" in told
    assert (tmp_path / "out/panels/sub/deep.png").is_file()


def test_places_without_images_are_one_line(run, photo, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no such file or folder"):
        predict(asked(run, tmp_path / "none.jpg"))
    with pytest.raises(UsageError, match="holds no images"):
        predict(asked(run, tmp_path / "empty"))
    photo.save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="does not predict 'sal'"):
        predict(asked(run, tmp_path / "a.png", tasks=("sal",)))
    with pytest.raises(UsageError, match="multiples of 16"):
        predict(asked(run, tmp_path / "a.png", size=(50, 50)))


def test_pictures_that_are_there_are_refused_unless_overwritten(run, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    predict(asked(run, tmp_path / "a.png"))
    with pytest.raises(UsageError, match=r"a\.png exists; choose another --out, or replace it with --overwrite"):
        predict(asked(run, tmp_path / "a.png"))
    assert predict(asked(run, tmp_path / "a.png", overwrite=True)).predicted == 1


def test_images_of_one_name_keep_their_endings_and_clashes_are_refused(photo, tmp_path):
    for place in ("one/a.png", "one/a.jpg", "two/a.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / place)
    assert [each.name for each in find([tmp_path / "one"])] == ["a.jpg", "a.png"]
    assert [each.name for each in find([tmp_path / "one/a.png", tmp_path / "one/a.png"])] == ["a"]
    with pytest.raises(UsageError, match="would have the same pictures"):
        find([tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize("inside", ["", "pictures"])
def test_pictures_beside_the_photos_are_not_predicted_again(run, photo, tmp_path, inside):
    photos = tmp_path / "photos"
    photos.mkdir()
    photo.save(photos / "a.png")
    for _ in range(2):
        assert predict(asked(run, photos, out=photos / inside, overwrite=True)).predicted == 1


def test_another_size_predicts_with_the_position_embedding_resampled(run, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    assert predict(asked(run, tmp_path / "a.png", size=(96, 128))).predicted == 1
