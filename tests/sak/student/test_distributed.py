"""The student trains in several processes (DistributedDataParallel, gloo)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sak.student.build import build_student

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_one_with_all_images(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    together, again = (torch.load(tmp_path / f"stage1-{rank}.pt", weights_only=True) for rank in (0, 1))
    specification = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    worker_module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(worker_module)
    student = build_student(worker_module.CONFIG).train()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    worker_module.loss_of(student(images)).backward()
    for name, parameter in student.named_parameters():
        assert torch.equal(together[name], again[name]), name
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
