"""`evaluate` module for accuracy under shift; the numbers are those of `peft_reprogram.metrics.shift_metrics`."""

import datasets
import evaluate

from peft_reprogram.metrics import shift_metrics


_DESCRIPTION = """\
Top-1 and balanced accuracy on each of several data sets (distribution shifts, corruptions or groups), their mean and \
worst, and the part of the in-distribution accuracy that is kept.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): Predicted class indices.
    references (list of int): True class indices.
    shifts (list of str): Name of the data set (or group) that each sample belongs to.
    id_name (str, optional): Which of these names is the in-distribution set; it is left out of mean and worst.
Returns:
    dict: accuracy, balanced_accuracy and n (each: name -> value), mean, worst, worst_shift, n_shifts; with id_name also
    id_accuracy, relative_robustness (name -> value) and mean_relative_robustness. All are fractions.
Examples:
    >>> metric = evaluate.load(peft_reprogram.metrics.path("shift_accuracy"))
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 1, 0], shifts=["sketch", "sketch", "v2"])["mean"]
    0.5
"""

_CITATION = """\
@inproceedings{taori2020measuring,
  title={Measuring Robustness to Natural Distribution Shifts in Image Classification},
  author={Taori, Rohan and Dave, Achal and Shankar, Vaishaal and Carlini, Nicholas and Recht, Benjamin and Schmidt, Ludwig},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ShiftAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "shifts": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2007.00644"],
        )

    def _compute(self, predictions, references, shifts, id_name=None):
        return shift_metrics(predictions, references, shifts, id_name=id_name)
