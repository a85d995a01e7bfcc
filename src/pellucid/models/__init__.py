"""Models by name, weights from files, and which parts of them are trained."""

from pellucid.models.backbones import Built, build_classifier, model_names, normalization
from pellucid.models.layers import layer_ids, set_trainable, train_mode
from pellucid.models.weights import WeightsReport, load_weights, read_metadata, read_weights, save_weights

__all__ = [
    "Built",
    "WeightsReport",
    "build_classifier",
    "layer_ids",
    "load_weights",
    "model_names",
    "normalization",
    "read_metadata",
    "read_weights",
    "save_weights",
    "set_trainable",
    "train_mode",
]
