"""Trackers: which there are, and what they are told."""

from types import SimpleNamespace

import pytest

from pipeline.train import devices
from pipeline.train.devices import check_trackers, start_trackers
from sak.errors import UsageError


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"tracker wandb is not installed; add it with `pip install 'sak\[tracking\]'`"
    ):
        check_trackers(["wandb"])


def test_trackers_get_dotted_settings_and_wandb_the_runs_directory(tmp_path):
    told = {}

    def init_trackers(project, *, config, init_kwargs):
        told.update(project=project, config=config, init_kwargs=init_kwargs)

    accelerator = SimpleNamespace(log_with=["wandb"], project_dir=tmp_path / "b8", init_trackers=init_trackers)
    start_trackers(accelerator, "sak-distill", {"recipe": {"training": {"steps": 3}}, "teachers": None})
    assert told["config"] == {"recipe.training.steps": 3, "teachers": "None"}
    assert told["init_kwargs"]["wandb"] == {"dir": str(tmp_path / "b8"), "name": "b8"}


def test_without_trackers_nothing_is_told():
    start_trackers(SimpleNamespace(log_with=[]), "sak-distill", {})
