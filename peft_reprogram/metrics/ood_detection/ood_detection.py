"""`evaluate` module for OOD detection; the numbers are those of `peft_reprogram.metrics.ood_metrics`."""

import datasets
import evaluate

from peft_reprogram.metrics import ood_metrics, split_scores


_DESCRIPTION = """\
AUROC, AUPR, FPR at a TPR and detection error of out-of-distribution detection under a named convention (default, ibm, \
openood, mcm), which is returned with the numbers. Scores are confidence-like (larger = more in-distribution) and are \
never transformed; ties are counted exactly.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): Confidence-like scores, larger = more in-distribution.
    references (list of int): 1 where the sample is in-distribution (ID), 0 where it is out-of-distribution (OOD).
    preset (str): Convention: "default", "ibm", "openood" or "mcm". Defaults to "default".
    tpr (float): TPR at which the FPR is taken, above 0 and at most 1. Defaults to 0.95.
Returns:
    dict: auroc, aupr_in, aupr_out, fpr, fpr_ood_positive, detection_error (None for "mcm"), all fractions; and preset,
    tpr, positive, n_id, n_ood, tied_fraction, resolution.
Examples:
    >>> metric = evaluate.load(peft_reprogram.metrics.path("ood_detection"))
    >>> metric.compute(predictions=[0.9, 0.8, 0.3, 0.1], references=[1, 1, 0, 0])["auroc"]
    1.0
"""

_CITATION = """\
@inproceedings{hendrycks2017baseline,
  title={A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks},
  author={Hendrycks, Dan and Gimpel, Kevin},
  booktitle={International Conference on Learning Representations},
  year={2017}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class OODDetection(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/1610.02136"],
        )

    def _compute(self, predictions, references, preset="default", tpr=0.95):
        return ood_metrics(*split_scores(predictions, references), preset=preset, tpr=tpr)
