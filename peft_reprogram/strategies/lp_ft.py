"""Linear probing, then fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Optional

from torch import nn

from ..training import TrainingResult
from .full import FullFineTuning
from .linear_probe import LinearProbe
from .registry import register
from .strategy import Task


@register
@dataclass(frozen=True)
class LPFT(FullFineTuning):
    """
    Full fine-tuning from the head that a linear probe found, so that the tower need not bend to a head that does not fit
    (arXiv 2202.10054). The probe has as many steps as the fine-tuning; its run is kept in the folder `probe`.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): Learning rate of the fine-tuning.
        weight_decay (`float`, *optional*, defaults to 0.1): Decoupled weight decay of the fine-tuning.
        probe_lr (`float`, *optional*, defaults to 3e-2): Learning rate of the probe.
    """

    name: ClassVar[str] = "lp_ft"

    probe_lr: float = 3e-2

    def fit(self, task: Task) -> tuple[nn.Module, Optional[TrainingResult]]:
        """Builds, trains the head, then all. The result is the fine-tuning's, its seconds those of both."""
        folder = Path(task.config.output_dir)
        probe_config = replace(task.config, output_dir=str(folder / "probe"))
        probe, probed = LinearProbe(lr=self.probe_lr).fit(replace(task, config=probe_config))
        classifier = self.build(task)
        classifier.get_submodule("head").load_state_dict(probe.get_submodule("head").state_dict())
        result = self.train(classifier, task)
        assert probed is not None
        return classifier.eval(), replace(result, seconds=round(result.seconds + probed.seconds, 3))
