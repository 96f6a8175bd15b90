"""`evaluate` module for calibration; the numbers are those of `peft_reprogram.metrics.calibration_metrics`."""

import datasets
import evaluate

from peft_reprogram.metrics import calibration_metrics


_DESCRIPTION = """\
Expected calibration error (bins of equal width and of equal mass), negative log-likelihood and Brier score of a \
classifier, at any temperature.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of float): Logits, one row for each sample; log-probabilities serve as well.
    references (list of int): True class indices.
    temperature (float): Positive; logits are divided by it. Defaults to 1.0.
    bins (int): Number of bins. Defaults to 15.
Returns:
    dict: ece, ece_equal_mass, nll (nats), brier (of [0, 2]), accuracy, confidence; and temperature, bins, n.
Examples:
    >>> metric = evaluate.load(peft_reprogram.metrics.path("calibration_error"))
    >>> metric.compute(predictions=[[2.0, 0.0], [0.0, 2.0]], references=[0, 1])["accuracy"]
    1.0
"""

_CITATION = """\
@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={International Conference on Machine Learning},
  year={2017}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CalibrationError(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1706.04599"],
        )

    def _compute(self, predictions, references, temperature=1.0, bins=15):
        return calibration_metrics(predictions, references, temperature, bins=bins)
