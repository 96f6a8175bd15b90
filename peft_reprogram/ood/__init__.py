"""Out-of-distribution scores on the cached outputs of a model. All scores: larger means more in-distribution."""

from .ash import ASH
from .energy import Energy
from .entropy import Entropy
from .gen import GEN
from .gl_mcm import GLMCM
from .kl_matching import KLMatching
from .knn import KNN
from .mahalanobis import Mahalanobis
from .max_logit import MaxLogit
from .mcm import MCM
from .msp import MSP
from .neg_label import NegLabel, mine_negative_labels, negative_prompts
from .outputs import IncompatibleOutputsError, ModelOutputs
from .pytorch_ood import from_pytorch_ood
from .react import ReAct
from .registry import get_score, list_scores, register_score
from .relative_mahalanobis import RelativeMahalanobis
from .scale import Scale
from .score import NotFittedError, Score
from .threshold import Threshold
from .vim import ViM


__all__ = [
    "ASH",
    "GEN",
    "GLMCM",
    "KNN",
    "MCM",
    "MSP",
    "Energy",
    "Entropy",
    "IncompatibleOutputsError",
    "KLMatching",
    "Mahalanobis",
    "MaxLogit",
    "ModelOutputs",
    "NegLabel",
    "NotFittedError",
    "ReAct",
    "RelativeMahalanobis",
    "Scale",
    "Score",
    "Threshold",
    "ViM",
    "from_pytorch_ood",
    "get_score",
    "list_scores",
    "mine_negative_labels",
    "negative_prompts",
    "register_score",
]
