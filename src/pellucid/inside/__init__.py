"""Looking inside any vision model: tensors and a module in, arrays with their measures out. Knows no task, no recipe and no run.

with inside.record(model) as rec: model(images)     attention of every layer, the model unedited and its fused kernels on
inside.attention_map(model, images)                 (B, gh, gw) of the class token, any layer and head; attention_rollout; relevance; grad_cam
inside.position_similarity(model)                   (gh, gw, gh, gw) of position embeddings
inside.project(features, labels, ...)               (E, n, 2) planes of features over epochs
inside.word_maps(model, generate, forced)           where a captioner looked for each word of a caption, each map checked; caption_maps
inside.score_maps(...), inside.deletion(...)        how far a map can be believed, beside its baselines
"""

from pellucid.inside.artefacts import artefacts
from pellucid.inside.attention import Record, Recording, attention_modules, record
from pellucid.inside.attribution import Attribution, integrated_gradients, occlusion, pooled
from pellucid.inside.deletion import deletion, insertion, randomisation, randomised
from pellucid.inside.faithfulness import PatchTarget, patch_target, score_maps
from pellucid.inside.features import find_classifier, penultimate
from pellucid.inside.geometry import Geometry
from pellucid.inside.grad_cam import grad_cam
from pellucid.inside.maps import AttentionMap, attention_layers, attention_map, attention_rollout
from pellucid.inside.positions import Positions, position_similarity
from pellucid.inside.projection import Projection, project
from pellucid.inside.relevance import relevance
from pellucid.inside.words import WordMaps, caption_maps, word_maps

__all__ = [
    "AttentionMap",
    "Attribution",
    "Geometry",
    "PatchTarget",
    "Positions",
    "Projection",
    "Record",
    "Recording",
    "WordMaps",
    "artefacts",
    "attention_layers",
    "attention_map",
    "attention_modules",
    "attention_rollout",
    "caption_maps",
    "deletion",
    "find_classifier",
    "grad_cam",
    "insertion",
    "integrated_gradients",
    "occlusion",
    "patch_target",
    "penultimate",
    "pooled",
    "position_similarity",
    "project",
    "randomisation",
    "randomised",
    "record",
    "relevance",
    "score_maps",
    "word_maps",
]
