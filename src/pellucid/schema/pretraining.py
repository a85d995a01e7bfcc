"""`method` and `probe`: self-supervised pre-training, and what its features are measured by while it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pellucid.schema.section import Count, Fraction, NonNegative, Positive, Section


class SecondView(Section):
    """What the second view of an image has another way than the first, which `augment` describes; null: the same."""

    color_jitter: Annotated[list[NonNegative], Field(min_length=4, max_length=4)] | None = Field(None, description="As augment.color_jitter.")
    color_jitter_probability: Fraction | None = Field(None, description="As augment.color_jitter_probability.")
    grayscale: Fraction | None = Field(None, description="As augment.grayscale.")
    gaussian_blur: Fraction | None = Field(None, description="As augment.gaussian_blur.")
    solarize: Fraction | None = Field(None, description="As augment.solarize.")

    @field_validator("color_jitter")
    @classmethod
    def _hue_range(cls, strengths: list[float] | None) -> list[float] | None:
        if strengths is not None and strengths[3] > 0.5:
            raise ValueError(f"expected a hue (the fourth number) of at most 0.5, got {strengths[3]:g}")
        return strengths


class ByolMethod(Section):
    """Bootstrap your own latent (Grill et al. 2020): an online network predicts what its own moving average says of another view."""

    name: Literal["byol"] = Field(description="byol: online and target network, predictor, loss 2 - 2 cos both ways (Grill et al. 2020).")
    projector_hidden: Count = Field(4096, description="Width of the projector's hidden layer, which has BatchNorm.")
    projector_output: Count = Field(256, description="Dimensions of a projection.")
    predictor_hidden: Count | None = Field(4096, description="Width of the predictor's hidden layer; null: no predictor, which collapses.")
    momentum: Fraction = Field(0.996, description="Share of the target that is kept in the first step; it rises to 1 along half a cosine (sec. 3.3).")
    stop_gradient: bool = Field(True, description="false: the gradient flows into both sides and there is no target network, which collapses.")
    second_view: SecondView = Field(
        default_factory=lambda: SecondView.model_validate({"gaussian_blur": 0.1, "solarize": 0.2}),
        description="What the second view has another way; default: blur 0.1 and solarize 0.2 (table 6).",
    )


class SimClrMethod(Section):
    """A simple framework for contrastive learning (Chen et al. 2020): two views of an image against all other images of the batch."""

    name: Literal["simclr"] = Field(description="simclr: normalised temperature-scaled cross-entropy over the batch (Chen et al. 2020).")
    projector_hidden: Count | None = Field(None, description="Width of the projector's hidden layer; null: as wide as the features.")
    projector_output: Count = Field(128, description="Dimensions of a projection.")
    temperature: Positive = Field(0.1, description="Cosines are divided by it.")
    second_view: SecondView = Field(
        default_factory=lambda: SecondView.model_validate({}), description="What the second view has another way; default: nothing."
    )


class SimSiamMethod(Section):
    """Simple Siamese networks (Chen and He 2021): a predictor and a stopped gradient, no moving average."""

    name: Literal["simsiam"] = Field(description="simsiam: predictor and stopped gradient, no moving average (Chen and He 2021).")
    projector_hidden: Count = Field(2048, description="Width of the projector's two hidden layers.")
    projector_output: Count = Field(2048, description="Dimensions of a projection.")
    predictor_hidden: Count | None = Field(512, description="Width of the predictor's hidden layer; null: no predictor, which collapses.")
    stop_gradient: bool = Field(True, description="false: the gradient flows into both sides, which collapses.")
    second_view: SecondView = Field(
        default_factory=lambda: SecondView.model_validate({}), description="What the second view has another way; default: nothing."
    )


Method = Annotated[ByolMethod | SimClrMethod | SimSiamMethod, Field(discriminator="name")]


class ProbeSection(Section):
    """pretraining: how labelled images say what the features are worth. Labels never reach training; without at least two classes nothing is probed."""

    bank: Count = Field(5000, description="Most training images whose features are compared with, each class with its share.")
    neighbours: Count = Field(20, description="k of the k-NN accuracy, which every evaluation measures.")
    temperature: Positive = Field(0.07, description="Of the k-NN votes, exp(cosine / temperature) (Wu et al. 2018).")
    linear: bool = Field(True, description="After training: logistic regression on the standardised features of the bank.")
