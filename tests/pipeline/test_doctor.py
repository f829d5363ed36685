"""`sak-cli doctor` tells the truth and ends with what would fail."""

import json
import shutil
from collections import namedtuple
from importlib import metadata

import pytest
import torch

from pipeline import doctor


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return doctor.examine((str(tmp_path_factory.mktemp("place")),))


def test_versions_are_those_installed(report):
    assert report.packages["torch"] == metadata.version("torch")
    assert report.packages["zarr"] == metadata.version("zarr")


def test_devices_are_those_torch_sees(report):
    assert len(report.devices) == torch.cuda.device_count()


def test_free_disk_is_reported_for_the_places_asked_for(report):
    assert report.disks[0].free == pytest.approx(shutil.disk_usage(report.disks[0].place).free, rel=0.1)


def test_a_place_that_does_not_exist_is_judged_by_its_nearest_parent(tmp_path):
    assert doctor._disk(str(tmp_path / "a" / "b")).total == shutil.disk_usage(tmp_path).total


def test_a_full_disk_is_a_finding_with_a_remedy(report, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    full = doctor.Report(**{**vars(report), "disks": (doctor._disk("/"),)})
    assert any("0.0 GiB free" in finding.what for finding in doctor._check_disks(full))


def test_absent_weights_name_the_folder_they_belong_in(report, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent = doctor.Report(**{**vars(report), "weights": {"dinov2-b": False}})
    assert str(tmp_path) in doctor._check_weights(absent)[0].remedy


def test_a_missing_package_is_fatal(monkeypatch, report):
    def version(name):
        if name == "zarr":
            raise metadata.PackageNotFoundError
        return "9999.0" if name != "torch" else "1.0"

    monkeypatch.setattr(metadata, "version", version)
    _, findings = doctor._installed_packages()
    fatal = {finding.what.split()[0] for finding in findings if finding.fatal}
    assert fatal == {"zarr", "torch"}
    assert doctor.Report(**{**vars(report), "findings": findings}).exit_code == 1


def test_json_has_every_field(report):
    assert set(json.loads(report.to_json())) == set(vars(report))


def test_text_ends_with_what_would_fail(report):
    last = report.to_text().rsplit("\n\n", 1)[1]
    assert last.startswith(("What would fail", "Nothing would fail"))
