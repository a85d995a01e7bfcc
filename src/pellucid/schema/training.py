"""`loss` and `train`: what is minimised, and how the weights are found."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pellucid.schema.section import MOST_EPOCHS, Count, Fraction, NonNegative, Positive, Section, Threads


class SamSection(Section):
    """Sharpness-aware minimisation around the optimiser (Foret et al. 2021; adaptive: Kwon et al. 2021)."""

    rho: Positive = Field(0.05, description="Radius of the perturbation.")
    adaptive: bool = Field(False, description="Scale the perturbation by the size of each weight (ASAM).")


class OptimizerSection(Section):
    """The update rule of a phase."""

    name: Literal["adam", "adamw", "sgd", "lars"] = Field(
        description="adam (weight decay in the gradient), adamw (decoupled), sgd, or lars (You et al. 2017: sgd whose rate each tensor scales by its norm)."
    )
    lr: Positive = Field(description="Peak learning rate; the schedule multiplies it.")
    weight_decay: NonNegative = Field(0.0, description="Weight decay.")
    exclude_norm_bias: bool = Field(
        False,
        description="No weight decay on biases and normalisation weights (tensors of one dimension); under lars no adaptation of their rate by norms either.",
    )
    momentum: Fraction = Field(0.9, description="sgd, lars: momentum.")
    nesterov: bool = Field(False, description="sgd, lars: Nesterov momentum.")
    trust_coefficient: Positive = Field(0.001, description="lars: the rate of a tensor is this times the norm of its weights over that of its gradient.")
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="adam, adamw: decay rates of the two moments."
    )
    eps: Positive = Field(1e-8, description="adam, adamw: added to the denominator.")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Layer-wise learning-rate decay: each layer below the classifier has this times the rate of the one above (Clark et al. 2020)."
    )
    sam: SamSection | None = Field(None, description="Sharpness-aware minimisation around this optimiser.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class _Schedule(Section):
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Optimiser steps over which the rate rises linearly from 0 to its peak.")
    warmup_epochs: NonNegative = Field(0.0, description="The same in epochs; give one of the two.")

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return self


class ConstantSchedule(_Schedule):
    """The peak rate throughout."""

    name: Literal["constant"] = Field(description="Peak rate throughout.")


class CosineSchedule(_Schedule):
    """Half a cosine from the peak to `min_lr` (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = Field(description="Half a cosine from the peak to min_lr.")
    min_lr: NonNegative = Field(0.0, description="Rate at the end of the phase.")


class LinearSchedule(_Schedule):
    """A straight line from the peak to `min_lr`."""

    name: Literal["linear"] = Field(description="A straight line from the peak to min_lr.")
    min_lr: NonNegative = Field(0.0, description="Rate at the end of the phase.")


class NoamSchedule(_Schedule):
    """Linear warm-up, then inverse square root (Vaswani et al. 2017, eq. 3) or exponential decay."""

    name: Literal["noam"] = Field(description="Linear warm-up, then decay.")
    decay: Literal["inverse_sqrt", "exponential"] = Field("inverse_sqrt", description="What follows the warm-up.")
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.95, description="exponential: factor for each epoch after the warm-up.")

    @model_validator(mode="after")
    def _has_warmup(self) -> Self:
        if not self.warmup_steps and not self.warmup_epochs:
            raise ValueError("schedule noam needs warmup_steps or warmup_epochs")
        return self


class StepSchedule(_Schedule):
    """The rate times `gamma` at each milestone."""

    name: Literal["step"] = Field(description="Rate times gamma at each milestone.")
    milestones: list[Count] = Field(min_length=1, description="Epochs of the phase (counted from 1) after which the rate falls.")
    gamma: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.1, description="Factor at each milestone.")


Schedule = Annotated[ConstantSchedule | CosineSchedule | LinearSchedule | NoamSchedule | StepSchedule, Field(discriminator="name")]


class PhaseSection(Section):
    """A stretch of training with one optimiser and one schedule."""

    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = Field(description="Passes over the training set.")
    optimizer: OptimizerSection = Field(description="The update rule.")
    schedule: Schedule = Field(
        default_factory=lambda: ConstantSchedule.model_validate({"name": "constant"}), description="Learning rate as a function of the step within the phase."
    )


class EmaSection(Section):
    """An exponential moving average of the weights, which is then what is evaluated and kept."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.999, description="Share of the old average kept at each step t; at most (1 + t) / (10 + t), so that the start is forgotten."
    )


class EarlyStopSection(Section):
    """Stop a run that no longer improves."""

    patience: Count = Field(description="Evaluations without improvement before training stops.")
    metric: Literal["accuracy", "miou", "cider", "exact_match", "loss"] | None = Field(
        None, description="Validation number that is watched; default: the task's own, accuracy, miou or cider."
    )


POLYNOMIAL, FOCAL = ("poly1", "poly1_focal"), ("focal", "poly1_focal")  # losses with an epsilon, with a gamma


class LossTerm(Section):
    """One term of a loss. Means are over the valid pixels of the batch, or over its images where an image has one value (dice, lovasz)."""

    name: Literal["cross_entropy", "poly1", "focal", "poly1_focal", "dice", "lovasz"] = Field(
        description="cross_entropy, poly1 (Leng et al. 2022), focal (Lin et al. 2017), poly1_focal, dice or lovasz (Berman et al. 2018)."
    )
    weight: Positive = Field(1.0, description="Factor of the term in the sum.")
    epsilon: Annotated[float, Field(ge=-1.0)] = Field(1.0, description="poly1, poly1_focal: epsilon of the first polynomial term.")
    gamma: NonNegative = Field(2.0, description="focal, poly1_focal: exponent of (1 - p).")

    @model_validator(mode="after")
    def _settings_do_something(self) -> Self:
        for key, names, default in (("epsilon", POLYNOMIAL, 1.0), ("gamma", FOCAL, 2.0)):
            if getattr(self, key) != default and self.name not in names:
                raise ValueError(f"{key} {getattr(self, key):g} would do nothing: it belongs to {' and '.join(names)}, not to {self.name}")
        return self


class LossSection(Section):
    """What is minimised."""

    name: Literal["cross_entropy", "poly1", "focal", "poly1_focal", "dice", "lovasz", "sum"] = Field(
        "cross_entropy", description="cross_entropy; segmentation: also poly1, focal, poly1_focal, dice, lovasz, or the sum of some terms."
    )
    epsilon: Annotated[float, Field(ge=-1.0)] = Field(1.0, description="poly1, poly1_focal: epsilon of the first polynomial term (Leng et al. 2022).")
    gamma: NonNegative = Field(2.0, description="focal, poly1_focal: exponent of (1 - p) (Lin et al. 2017).")
    terms: list[LossTerm] = Field([], description="sum: the terms, each with its weight.")
    auxiliary_weight: NonNegative = Field(0.5, description="segmentation: weight of the loss of an auxiliary classifier, where the model has one.")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Share of the target spread over all classes (Szegedy et al. 2016).")
    class_weights: Literal["none", "balanced", "median_frequency"] | list[NonNegative] = Field(
        "none",
        description="Weight of each class, of its samples or pixels: none, balanced (inverse frequency, mean 1 over samples), median_frequency "
        "(Eigen and Fergus 2015), or a list in class order.",
    )

    @model_validator(mode="after")
    def _terms_make_a_sum(self) -> Self:
        if (self.name == "sum") != bool(self.terms):
            raise ValueError(
                "a loss of several terms is name: sum with terms: [...]" if self.terms else "sum needs terms, e.g. [{name: cross_entropy}, {name: dice}]"
            )
        return self

    @model_validator(mode="after")
    def _settings_do_something(self) -> Self:
        own = {"epsilon": (POLYNOMIAL, 1.0), "gamma": (FOCAL, 2.0)}
        for key, (names, default) in own.items():
            if getattr(self, key) != default and self.name not in names:
                where = "its terms" if self.name == "sum" else f"{' and '.join(names)}"
                raise ValueError(f"{key} {getattr(self, key):g} would do nothing: it belongs to {where}, not to {self.name}")
        return self

    @property
    def summed(self) -> list[LossTerm]:
        """The terms of the loss; one without `sum`."""
        if self.name == "sum":
            return self.terms
        return [LossTerm.model_validate({"name": self.name, "weight": 1.0, "epsilon": self.epsilon, "gamma": self.gamma})]


class TrainSection(Section):
    """How the weights are found."""

    batch_size: Count = Field(32, description="Effective batch: images whose mean gradient makes one step.")
    micro_batch_size: Count | Literal["auto"] = Field(
        "auto", description="Images in memory at once, on each device; auto finds the largest halving of batch_size that fits. Halves when memory runs out."
    )
    activation_checkpointing: bool = Field(
        False, description="Compute the inside of each block again in the backward pass instead of keeping it: less memory, a third more time, the same bits."
    )
    phases: list[PhaseSection] = Field(min_length=1, description="One or more stretches of training, in order.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Number format of the forward and backward pass; weights stay fp32.")
    channels_last: bool = Field(False, description="Memory format of images and convolutions.")
    compile: bool = Field(False, description="torch.compile the model.")
    sync_batch_norm: bool = Field(False, description="torchrun: BatchNorm takes its statistics over all processes.")
    clip_grad_norm: Positive | None = Field(None, description="Largest L2 norm of the gradient of a step.")
    ema: EmaSection | None = Field(None, description="Moving average of the weights.")
    balanced_sampling: bool = Field(False, description="Draw every class equally often (with replacement); an epoch keeps its length.")
    early_stop: EarlyStopSection | None = Field(None, description="Stop when validation no longer improves.")
    keep: Literal["last", "best"] = Field(
        "last",
        description="Weights that are reported: those of the last epoch, or of the best validation accuracy (or early_stop.metric; then the number is selected on val, and says so).",
    )
    evaluate_every: Count = Field(1, description="Epochs between evaluations on val; the last epoch is always evaluated.")
    checkpoint_seconds: NonNegative = Field(120.0, description="Seconds between checkpoints within a phase; 0 after every step. Not part of the result.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one.")
    threads: Threads | None = Field(None, description="CPU threads of torch; default: the number of cores. Part of what fixes the bits.")

    @model_validator(mode="after")
    def _compiled_as_it_is(self) -> Self:
        if self.compile and (self.activation_checkpointing or self.sync_batch_norm):
            other = "activation_checkpointing" if self.activation_checkpointing else "sync_batch_norm"
            raise ValueError(f"compile and {other} do not work together; choose one of the two")
        return self
