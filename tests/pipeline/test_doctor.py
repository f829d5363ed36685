"""`sak-cli doctor` tells the truth and ends with what would fail."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from pipeline import doctor
from sak.errors import UsageError
from sak.teachers.registry import SAM_URLS


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


@pytest.mark.parametrize("place", ["a_file", "a_file/cache", "/proc/cache"])
def test_a_place_where_nothing_can_be_made_is_not_writable(report, monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    disk = doctor._disk(place)
    assert not disk.writable
    findings = doctor._check_disks(replace(report, disks=(disk,)))
    assert [finding.what for finding in findings] == [f"{place} is not writable"]


def test_a_folder_one_may_not_look_into_is_not_writable(monkeypatch, tmp_path):
    usage = shutil.disk_usage

    def locked(folder):
        if folder != tmp_path:
            raise PermissionError
        return usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", locked)
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", lambda dir: locked(None))
    assert not doctor._disk(str(tmp_path / "a" / "b")).writable


def test_looking_leaves_nothing_behind(tmp_path):
    assert doctor._disk(str(tmp_path)).writable
    assert not list(tmp_path.iterdir())


def test_a_url_is_refused(tmp_path):
    with pytest.raises(UsageError, match="s3://bucket/cache"):
        doctor.examine(("s3://bucket/cache",))


def test_absent_weights_name_the_folders_they_belong_in(report, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    remedy = doctor._check_weights(replace(report, weights={"dinov2-b": False}))[0].remedy
    assert remedy.startswith("HF_HUB_OFFLINE is set")
    assert str(tmp_path / "hub") in remedy
    assert str(tmp_path / "torch/hub/checkpoints") in remedy


def test_weights_at_hand_are_found_where_they_are_said_to_belong(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    before = doctor._weights_at_hand()
    place = next(folder for folder in doctor.weight_folders() if "torch" in folder)
    Path(place).mkdir(parents=True)
    (Path(place) / SAM_URLS["vit_b"].rsplit("/", 1)[1]).touch()
    gained = {name for name, here in doctor._weights_at_hand().items() if here and not before[name]}
    assert gained == {"segment-anything-b"}


def test_without_torch_and_the_hub_the_report_still_comes_and_is_fatal():
    code = """
import sys
from importlib import metadata, util

version, find_spec = metadata.version, util.find_spec

def version_but_of_torch(name):
    if name == "torch":
        raise metadata.PackageNotFoundError
    return version(name)

metadata.version = version_but_of_torch
util.find_spec = lambda name: None if name == "huggingface_hub" else find_spec(name)
sys.modules["torch"] = sys.modules["huggingface_hub"] = None
from pipeline.doctor import examine
report = examine(())
print(report.to_text())
sys.exit(report.exit_code)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "! torch is not installed: run `make setup`" in result.stdout


def test_sak_itself_missing_is_fatal(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", requires)
    assert [finding.fatal for finding in doctor._installed_packages()[1]] == [True]


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
