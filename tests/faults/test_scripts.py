"""Scripts as people write them: no guard around what they do, functions without names, and no module to import."""

import os
import subprocess
import sys
from pathlib import Path

from automc.study import Study

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

import torch
from torch import nn

import automc

print("begun")
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


images = torch.randn(64, 3, 8, 8)
model = Net().eval()
batches = [(x, model(x).argmax(1)) for x in images.split(16)]
right = lambda x, y: (x.argmax(1) == y).float()
task = automc.Task(model, calibration=batches[:2], validation=batches[2:], metric=right)
study = automc.search(
    task, budget="macs<=60%", space="channels", searcher="tpe", trials=4, workers=2, storage="s.journal", study="s"
)
print(len(study.evaluations), [e.state for e in study.evaluations])
"""


def test_a_script_without_a_guard_searches_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command, environment = [sys.executable, "script.py"], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begun\n4 ['ok', 'ok', 'ok', 'ok']\n"
    assert "Traceback" not in done.stderr
    assert len({e.policy for e in Study.open(tmp_path / "s.journal").evaluations}) == 4
