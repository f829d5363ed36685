import logging
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from sak.errors import SakError
from sak.teachers.registry import HubFiles, UrlFile

FILES = HubFiles("owner/name", ("model.safetensors", "pytorch_model.bin"))


def test_the_next_file_is_asked_for_where_the_first_does_not_exist(offline_hub, monkeypatch, tmp_path):
    asked = []

    def download(repository, filename):
        asked.append((repository, filename))
        if filename == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert FILES.fetch("m") == tmp_path / "pytorch_model.bin"
    assert asked == [("owner/name", "model.safetensors"), ("owner/name", "pytorch_model.bin")]


def test_the_hub_does_not_speak_of_its_attempts(offline_hub, monkeypatch, caplog):
    logger = logging.getLogger("huggingface_hub.utils._http")

    def download(repository, filename):
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    with pytest.raises(SakError, match="could not be fetched"):
        FILES.fetch("m")
    assert not caplog.records
    logger.warning("heard again")
    assert caplog.records


def test_a_repository_without_the_files_is_named(offline_hub, monkeypatch):
    def download(repository, filename):
        raise EntryNotFoundError("404")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(SakError, match=r"m: .* could not be fetched \(it has none of model.safetensors, pytorch_model"):
        FILES.fetch("m")


def test_a_refusal_of_the_hub_is_passed_on_in_one_line(offline_hub, monkeypatch):
    def download(repository, filename):
        raise HfHubHTTPError("403 Forbidden: gated\nmore lines", response=Mock(headers={}))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(SakError, match="403 Forbidden") as error:
        FILES.fetch("m")
    assert "\n" not in str(error.value)


def test_an_unreachable_url_is_named_with_the_place_for_the_file(offline_hub, tmp_path):
    file = UrlFile(f"file://{tmp_path}/sam_vit_b_01ec64.pth")
    with pytest.raises(SakError) as error:
        file.fetch("segment_anything/vit_b")
    assert str(error.value).startswith(f"segment_anything/vit_b: {file.path} is not there and {file.url}")
    assert "put the file there" in str(error.value)


def test_a_download_with_another_hash_than_its_name_says_is_refused(offline_hub, tmp_path):
    (tmp_path / "weights-0123abcd.pth").write_bytes(b"other bytes")
    file = UrlFile(f"file://{tmp_path}/weights-0123abcd.pth")
    with pytest.raises(SakError, match="invalid hash value"):
        file.fetch("m")
    assert file.local() is None


def test_a_url_is_fetched_once(offline_hub, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"bytes")
    file = UrlFile(f"file://{tmp_path}/weights.pth")
    assert file.fetch("m").read_bytes() == b"bytes"
    (tmp_path / "weights.pth").unlink()
    assert file.fetch("m") == file.local() == file.path
