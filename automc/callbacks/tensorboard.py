"""A search as curves in TensorBoard: `tensorboard --logdir DIR` shows each study as a run, its trials as steps."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from automc.callbacks.callback import Ending
from automc.callbacks.figures import counts, described, figures
from automc.errors import RegistryError
from automc.evaluation import Evaluation
from automc.study import Study


class TensorBoard:
    """Writes event files under a folder; RegistryError where the package is missing."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RegistryError(
                "TensorBoard's files must be written by its package; it is not installed: pip install "
                "automc[tensorboard]."
            ) from error
        self.folder = Path(folder).absolute()
        self._make = SummaryWriter
        self._writer: Any = None

    def begin(self, study: Study) -> None:
        """Opens the study's run and writes down what is searched."""
        self._writer = self._make(str(self.folder / run_folder(study.name)))
        text = json.dumps(described(study), indent=1)
        self._writer.add_text("search", "".join(f"    {line}\n" for line in text.splitlines()), len(study.evaluations))
        self._writer.flush()

    def trial(self, study: Study, evaluation: Evaluation) -> None:
        """Writes a trial's figures."""
        for name, value in figures(study, evaluation).items():
            self._writer.add_scalar(name, value, evaluation.number)
        for state, count in counts(study).items():
            self._writer.add_scalar(f"trials/{state}", count, evaluation.number)
        self._writer.flush()

    def end(self, study: Study, how: Ending, reason: str) -> None:
        """Closes the run."""
        self._writer.add_text("end", f"    {how} {reason}".rstrip(), len(study.evaluations))
        self._writer.close()


def run_folder(name: str) -> str:
    """A study's name as that of a folder: the same where that is harmless, otherwise with a digest of it."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:100]
    return name if name and cleaned == name else f"{cleaned}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
