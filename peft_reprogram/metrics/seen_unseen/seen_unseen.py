"""`evaluate` module for partly fine-tuned classifiers; the numbers are those of `seen_unseen_metrics`."""

import datasets
import evaluate

from peft_reprogram.metrics import seen_unseen_metrics


_DESCRIPTION = """\
Accuracy of a classifier that was fine-tuned on a part of its classes, on seen and unseen classes, with and without the \
other classes to confuse them with, and the area under the seen-unseen accuracy curve (AUSUC), swept exactly.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of float): Logits over all classes, one row for each sample.
    references (list of int): True class indices.
    seen_classes (list of int): Indices of the classes that were fine-tuned on.
    gamma (float): Added to the logits of the unseen classes. Defaults to 0.0.
Returns:
    dict: acc_y_y, acc_s_y, acc_u_y, acc_s_s, acc_u_u, ausuc, all fractions; and gamma, n_seen, n_unseen. acc_a_b reads:
    samples of classes A, decided among classes B (Y all, S seen, U unseen).
Examples:
    >>> metric = evaluate.load(peft_reprogram.metrics.path("seen_unseen"))
    >>> metric.compute(predictions=[[2.0, 0.0], [1.0, 0.0]], references=[0, 1], seen_classes=[0])["ausuc"]
    1.0
"""

_CITATION = """\
@inproceedings{mai2024finetuning,
  title={Fine-Tuning is Fine, if Calibrated},
  author={Mai, Zheda and Chowdhury, Arpita and Zhang, Ping and Tu, Cheng-Hao and Chen, Hong-You and Pahuja, Vardaan and \
Berger-Wolf, Tanya and Gao, Song and Stewart, Charles and Su, Yu and Chao, Wei-Lun},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class SeenUnseen(evaluate.Metric):
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
            reference_urls=["https://arxiv.org/abs/2409.16223", "https://arxiv.org/abs/1605.04253"],
        )

    def _compute(self, predictions, references, seen_classes=None, gamma=0.0):
        if seen_classes is None:
            raise ValueError("`seen_classes` is missing: pass `compute(..., seen_classes=[...])`.")
        return seen_unseen_metrics(predictions, references, seen_classes, gamma=gamma)
