"""The schema of a recipe: every key with its type, default, range and one line of description.

These models are the single place that says what a recipe may hold; the JSON schema, the reference page and the errors
come from them. `pellucid.recipe` reads files.
"""

from __future__ import annotations

from pellucid.schema.captioning import DecoderSection, GenerationSection, TextSection, TokenizerSection, WordsSection
from pellucid.schema.data import (
    CAPTION_SOURCES,
    DRAWN_SOURCES,
    MASK_SOURCES,
    SOURCES,
    AugmentSection,
    Channel,
    Colour,
    DataSection,
    Normalization,
    StoreSection,
)
from pellucid.schema.inside import EPOCH_WORDS, EpochWord, EverySection, InsideSection, MapMethod, MaskValue
from pellucid.schema.pretraining import ByolMethod, Method, ProbeSection, SecondView, SimClrMethod, SimSiamMethod
from pellucid.schema.recipe import CAPTIONER, HOMES_OF_TASK, MODEL_HOMES, HeadSection, ModelSection, Recipe, ScoringSection
from pellucid.schema.section import MOST_DRAWN, MOST_EPOCHS, Count, Fraction, NonNegative, Positive, Section, Threads
from pellucid.schema.training import (
    ConstantSchedule,
    CosineSchedule,
    EarlyStopSection,
    EmaSection,
    LinearSchedule,
    LossSection,
    LossTerm,
    NoamSchedule,
    OptimizerSection,
    PhaseSection,
    SamSection,
    Schedule,
    StepSchedule,
    TrainSection,
)

__all__ = [
    "CAPTIONER",
    "CAPTION_SOURCES",
    "DRAWN_SOURCES",
    "EPOCH_WORDS",
    "HOMES_OF_TASK",
    "MASK_SOURCES",
    "MODEL_HOMES",
    "MOST_DRAWN",
    "MOST_EPOCHS",
    "SOURCES",
    "AugmentSection",
    "ByolMethod",
    "Channel",
    "Colour",
    "ConstantSchedule",
    "CosineSchedule",
    "Count",
    "DataSection",
    "DecoderSection",
    "EarlyStopSection",
    "EmaSection",
    "EpochWord",
    "EverySection",
    "Fraction",
    "GenerationSection",
    "HeadSection",
    "InsideSection",
    "LinearSchedule",
    "LossSection",
    "LossTerm",
    "MapMethod",
    "MaskValue",
    "Method",
    "ModelSection",
    "NoamSchedule",
    "NonNegative",
    "Normalization",
    "OptimizerSection",
    "PhaseSection",
    "Positive",
    "ProbeSection",
    "Recipe",
    "SamSection",
    "Schedule",
    "ScoringSection",
    "SecondView",
    "Section",
    "SimClrMethod",
    "SimSiamMethod",
    "StepSchedule",
    "StoreSection",
    "TextSection",
    "Threads",
    "TokenizerSection",
    "TrainSection",
    "WordsSection",
]
