"""`inside`: what a run keeps of its model at chosen epochs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pellucid.errors import did_you_mean
from pellucid.schema.section import MOST_DRAWN, MOST_EPOCHS, Count, Section


class EverySection(Section):
    """Epochs at a fixed distance."""

    every: Count = Field(description="Epochs k, 2k, 3k … and the last one.")


EpochWord = Literal["first", "middle", "last"]
EPOCH_WORDS: list[EpochWord | int] = ["first", "middle", "last"]
MapMethod = Literal["attention", "rollout", "grad_cam", "relevance"]
MaskValue = Annotated[int, Field(ge=0, le=65535)]
MOST_BANK = 16_000  # one atlas of tiles of 64 pixels holds their pictures
_EPOCHS = "expected a list of first, middle, last and whole numbers from 1 (0: before training), or {every: k} with k of at least 1"


class InsideSection(Section):
    """What a run keeps at chosen epochs of training, so that one can look inside its model afterwards. Changes no bit of the weights."""

    images: list[str] = Field([], description="Photographs to look at, besides those of the split.")
    split: Literal["train", "val"] = Field("val", description="Split that samples and features come from.")
    samples: Annotated[int, Field(ge=0, le=10_000)] = Field(
        24, description="Images of the split, evenly over its classes, whose maps are drawn and scored; all of a smaller split, 0: none."
    )
    features: Annotated[int, Field(ge=0, le=MOST_DRAWN)] = Field(
        1000, description="Images of the split (the probe), evenly over its classes, whose penultimate features are kept; all of a smaller split, 0: none."
    )
    epochs: list[EpochWord | Annotated[int, Field(ge=0)]] | EverySection = Field(
        EPOCH_WORDS, description="When: first, middle, last or numbers counted from 1 (0: before training), or {every: k}."
    )
    masks: str | None = Field(None, description="Folder of masks: <stem>.png for each image of the split, one value a pixel; scenes have their own.")
    mask_target: Annotated[list[MaskValue], Field(min_length=1)] | None = Field(
        None, description="Values of a mask that are the target; default: every value above 0, in scenes the object that gives the class."
    )
    mask_ignore: list[MaskValue] = Field([], description="Values of a mask that count neither way.")
    methods: Annotated[list[MapMethod], Field(min_length=1)] | None = Field(
        None, description="Maps: attention, rollout, grad_cam, relevance; default: those that fit the model."
    )
    classes: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="segmentation: classes whose maps (Grad-CAM) are drawn; default: of each picture the largest class that is not called background."
    )
    projections: list[Literal["pca", "tsne"]] | None = Field(
        None, description="Pictures of the features in the plane: pca, tsne; default: both where there are features."
    )
    attention: bool = Field(
        True, description="Whether the attention of every patch to every other is kept, of up to 8 of the pictures, where the model has attention."
    )
    neighbours: Annotated[int, Field(ge=0, le=MOST_BANK)] = Field(
        2000, description="Training images, evenly over the classes, among which the pictures most like a mistake or a new photograph are looked for; 0: none."
    )

    @field_validator("epochs", mode="before")
    @classmethod
    def _known_epochs(cls, value: Any) -> Any:
        if isinstance(value, EverySection):
            return value
        if isinstance(value, dict):
            if list(value) != ["every"]:
                raise ValueError(f"{_EPOCHS}; got a mapping of {', '.join(map(str, value)) or 'nothing'}.{did_you_mean(next(iter(value), ''), ['every'])}")
            value, least = [value["every"]], 1
        elif isinstance(value, list) and value:
            least = 0
        else:
            raise ValueError(f"{_EPOCHS}; got {value!r}")
        for epoch in value:
            known = isinstance(epoch, int) and not isinstance(epoch, bool) and least <= epoch <= MOST_EPOCHS
            if not known and not (least == 0 and epoch in EPOCH_WORDS):
                raise ValueError(f"{_EPOCHS}; got {epoch!r}.{did_you_mean(str(epoch), map(str, EPOCH_WORDS))}")
        return {"every": value[0]} if least else value

    @model_validator(mode="after")
    def _has_a_purpose(self) -> Self:
        if not self.images and not self.samples and not self.features:
            raise ValueError("there is nothing to look at: give images, samples or features above 0, or leave inside out")
        if self.projections and not self.features:
            raise ValueError("projections show features, and features is 0; give a number of images, or leave projections out")
        for name in ("images", "mask_target", "mask_ignore", "methods", "classes", "projections"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds {next(v for i, v in enumerate(values) if v in values[:i])!r} twice")
        if both := set(self.mask_target or ()) & set(self.mask_ignore):
            raise ValueError(f"the value {min(both)} stands in mask_target and in mask_ignore; it can be only one of the two")
        return self

    @property
    def shown(self) -> str:
        """What the pictures are, whose numbers are means over them."""
        return " and ".join([*(["photographs"] if self.images else []), *([self.split] if self.samples else [])])

    def chosen_epochs(self, total: int) -> list[int]:
        """Numbers of the epochs of a run of `total`, ascending: first is 1, middle half of the total rounded up; 0 is before training."""
        if isinstance(self.epochs, EverySection):
            return sorted({*range(self.epochs.every, total + 1, self.epochs.every), total})
        words = {"first": 1, "middle": -(-total // 2), "last": total}
        return sorted({epoch if isinstance(epoch, int) else words[epoch] for epoch in self.epochs})
