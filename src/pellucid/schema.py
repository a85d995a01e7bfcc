"""The schema of a recipe: every key with its type, default, range and one line of description.

These models are the single place that says what a recipe may hold; the JSON schema, the reference page and the errors
come from them. `pellucid.recipe` reads files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pellucid.errors import did_you_mean

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Threads = Annotated[int, Field(ge=1, le=4096)]
MOST_DRAWN = 10_000_000  # images of a drawn split: their names and labels are held in memory
MOST_EPOCHS = 1_000_000

SOURCES = ("folder", "prefix", "table", "pairs", "scenes", "digits", "torchvision:<Name>", "huggingface:<name>")
DRAWN_SOURCES = ("scenes", "digits")
MASK_SOURCES = ("pairs", "scenes")  # those with a mask for each image
MODEL_HOMES = ("timm", "torchvision", "smp", "pellucid")
HOMES_OF_TASK = {"classification": ("timm", "torchvision"), "segmentation": ("pellucid", "torchvision", "smp")}
Channel = Annotated[int, Field(ge=0, le=255)]
Colour = Channel | Annotated[list[Channel], Field(min_length=3, max_length=3)]  # a grey value or palette index, or [r, g, b]


class Section(BaseModel):
    """A mapping of the recipe: unknown keys are errors, values are not converted between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Normalization(Section):
    """Per-channel mean and standard deviation (RGB) of pixels scaled to [0, 1]."""

    mean: list[float] = Field(min_length=3, max_length=3, description="Mean of R, G, B in [0, 1].")
    std: list[Positive] = Field(min_length=3, max_length=3, description="Standard deviation of R, G, B.")


class StoreSection(Section):
    """Where decoded images are kept between epochs and runs."""

    limit_gb: NonNegative = Field(8.0, description="Largest store of one split in GB (10^9 bytes); a larger split streams. 0 always streams.")
    directory: str | None = Field(None, description="Folder of the store; default: the user's cache folder (XDG_CACHE_HOME/pellucid/store).")


class DataSection(Section):
    """Where images and labels come from and how they become arrays of one size."""

    source: str = Field(description="Layout: folder, prefix, table, pairs, scenes, digits, torchvision:<Name>, huggingface:<name>.")
    train: str | Count | None = Field(None, description="Training images: a folder, a CSV (table) or a count (scenes, digits).")
    val: str | Count | float | None = Field(None, description="Validation images: as train, or a fraction of train in (0, 1) split by content hash.")
    test: str | Count | None = Field(None, description="Test images, evaluated once after training.")
    image_dir: str | None = Field(None, description="table: folder of the images, `{split}` stands for train, val or test; default: beside the CSV.")
    filename_column: str = Field("filename", description="table: name of the column with file names.")
    label_column: str = Field("label", description="table: name of the column with labels.")
    mask_dir: str | None = Field(
        None, description="pairs: folder of the masks, `{split}` stands for train, val or test; default: <images>_masks where there is one, else beside the images."
    )
    pair_names: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None, description="pairs: names of image and mask without endings, `{}` for what both have in common; default: found, [{}_sat, {}_mask] or equal stems."
    )
    palette: dict[str, Colour] | None = Field(
        None, description="pairs: class -> its colour [r, g, b] in the masks, or its grey value; default: values 0, 1, 2 ... in class order."
    )
    threshold: Annotated[int, Field(ge=1, le=255)] | None = Field(
        None, description="pairs: channels of a coloured mask of at least this count as 255, others as 0; default: as they are."
    )
    ignored: list[Colour] = Field([], description="pairs: values or colours of a mask that count neither way (void).")
    classes: str | list[str] | None = Field(
        None, description="Class order: a text file with one name a line, or a list; default: classes.txt where there is one, else sorted."
    )
    image_size: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        224, description="Side in pixels of what the model sees, or [height, width]."
    )
    fit: Literal["crop", "stretch", "pad", "native"] = Field(
        "crop",
        description="How an image meets image_size: short side resized and centre cropped, both sides resized, long side resized and padded, or cropped only.",
    )
    resize_size: Count | None = Field(None, description="crop: length in pixels of the short side before the centre crop; default: image_size.")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="Filter when images are resized; both are antialiased.")
    normalize: Literal["model", "dataset", "imagenet", "none"] | Normalization = Field(
        "model", description="Mean and std: the model's own, measured from the training set, ImageNet's, none, or given as {mean, std}."
    )
    on_bad: Literal["refuse", "skip"] = Field("refuse", description="A bad image: refuse to start, or leave it out and name it in run and report.")
    store: StoreSection = Field(default_factory=lambda: StoreSection.model_validate({}), description="Where decoded images are kept.")
    workers: Annotated[int, Field(ge=0, le=4096)] = Field(2, description="Threads that decode and read ahead; the result does not depend on it.")

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        plain = [name for name in SOURCES if ":" not in name]
        home, _, name = source.partition(":")
        if source in plain or (home in ("torchvision", "huggingface") and name):
            return source
        raise ValueError(f"expected one of {', '.join(SOURCES)}; got {source!r}.{did_you_mean(source, plain)}")

    @model_validator(mode="after")
    def _splits_fit_source(self) -> Self:
        drawn, hub = self.source in DRAWN_SOURCES, ":" in self.source
        if not hub and self.train is None:
            raise ValueError(f"source {self.source} needs train: " + ("a number of images" if drawn else "a path"))
        for split in ("train", "val", "test"):
            value = getattr(self, split)
            if drawn and isinstance(value, str):
                raise ValueError(f"source {self.source} takes a number of images for {split}, got {value!r}")
            if drawn and isinstance(value, int) and value > MOST_DRAWN:
                raise ValueError(f"source {self.source} draws at most {MOST_DRAWN:,} images for {split}, got {value:,}")
            if not drawn and not hub and isinstance(value, int):
                raise ValueError(f"source {self.source} takes a path for {split}, got the number {value}")
        if isinstance(self.val, float) and not 0.0 < self.val < 1.0:
            raise ValueError(f"val as a fraction lies between 0 and 1, got {self.val:g}")
        for name in ("mask_dir", "pair_names", "palette", "threshold", "ignored"):
            if getattr(self, name) and self.source != "pairs":
                raise ValueError(f"{name} belongs to source pairs, not to {self.source}")
        if self.pair_names is not None and any(name.count("{}") != 1 for name in self.pair_names):
            raise ValueError(f"pair_names: each holds {{}} once, for what image and mask have in common; got {self.pair_names}")
        if self.palette is not None:
            self._check_palette(self.palette)
        if self.resize_size is not None and (self.fit != "crop" or self.resize_size < min(self.size)):
            raise ValueError("resize_size belongs to fit: crop and is at least image_size")
        return self

    def _check_palette(self, palette: dict[str, Colour]) -> None:
        colours = [*palette.values(), *self.ignored]
        if len({isinstance(colour, int) for colour in colours}) > 1:
            raise ValueError("palette and ignored: give a grey value for each class, or a colour [r, g, b] for each")
        if twice := next((colour for i, colour in enumerate(colours) if colour in colours[:i]), None):
            raise ValueError(f"palette and ignored: {twice} stands there twice")
        if len(palette) < 2:
            raise ValueError(f"palette: expected at least two classes, got {', '.join(palette) or 'none'}")
        if self.threshold is not None and any(isinstance(colour, int) or set(colour) - {0, 255} for colour in colours):
            raise ValueError("threshold makes each channel 0 or 255: give colours [r, g, b] of 0 and 255")
        if isinstance(self.classes, list) and sorted(self.classes) != sorted(palette):
            raise ValueError("classes and palette name different classes; classes gives their order, palette the colour of each")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the model sees."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size[0], self.image_size[1]


class ModelSection(Section):
    """The network and where its weights come from."""

    name: str = Field(description="Home and name: timm/<name>, torchvision/<name>; segmentation: torchvision/<name>, smp/<name>, pellucid/fcn32s, fcn16s, fcn8s.")
    pretrained: bool | Literal["backbone"] = Field(
        False,
        description="Start from the published weights of that name, or of its backbone alone (segmentation); downloaded or from the hub's local cache.",
    )
    weights: str | None = Field(None, description="Start from a local .safetensors, .pth or .pt file.")
    encoder: str | None = Field(None, description="smp: name of the backbone, e.g. resnet50 or tu-<name of timm>; default: the model's own.")
    backbone_weights: str | None = Field(None, description="segmentation: start the backbone from a local file of a classifier's weights.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the model's constructor, e.g. {channel_multiplier: 0.25}.")
    freeze: Literal["none", "backbone"] | list[str] = Field(
        "none", description="Parts that are not trained: none, backbone (all but the classifier), or a list of module-path prefixes."
    )
    drop_rate: Fraction | None = Field(None, description="Dropout before the classifier; default: the model's own.")
    drop_path_rate: Fraction | None = Field(None, description="Stochastic depth (Huang et al. 2016); default: the model's own.")

    @model_validator(mode="after")
    def _home_and_weights(self) -> Self:
        home, slash, name = self.name.partition("/")
        if not slash or not name or home not in MODEL_HOMES:
            raise ValueError(f"name: expected {' or '.join(h + '/<name>' for h in MODEL_HOMES)}, got {self.name!r}.{did_you_mean(home, MODEL_HOMES)}")
        given = [name for name in ("pretrained", "weights", "backbone_weights") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError("give pretrained: true or weights: FILE, not both" if "backbone_weights" not in given else f"give {' or '.join(given)}, not both")
        if self.encoder is not None and home != "smp":
            raise ValueError(f"encoder belongs to models of smp, {self.name} has its own backbone")
        return self


class AugmentSection(Section):
    """Random changes of training images, in the order of these fields. Every draw depends on seed, epoch, sample and operation alone."""

    random_resized_crop: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Area of the crop as [least, most] fraction of the image, resized to image_size."
    )
    crop_ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [0.75, 1.3333333333333333], description="Aspect ratio (width / height) range of random_resized_crop."
    )
    random_crop: Annotated[int, Field(ge=0)] | None = Field(None, description="Zero padding in pixels on every side before a random crop of image_size.")
    horizontal_flip: Fraction = Field(0.0, description="Probability of mirroring left and right.")
    vertical_flip: Fraction = Field(0.0, description="Probability of mirroring top and bottom.")
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = Field(0.0, description="Largest rotation in degrees, either way; uncovered pixels are 0.")
    color_jitter: Annotated[list[NonNegative], Field(min_length=4, max_length=4)] | None = Field(
        None, description="[brightness, contrast, saturation, hue] strengths; hue at most 0.5."
    )
    color_jitter_probability: Fraction = Field(1.0, description="Probability that an image is jittered.")
    grayscale: Fraction = Field(0.0, description="Probability of removing colour.")
    gaussian_blur: Fraction = Field(0.0, description="Probability of a blur with sigma drawn from [0.1, 2.0] pixels and a kernel of a tenth of the image.")
    solarize: Fraction = Field(0.0, description="Probability of inverting all pixels of at least 0.5.")
    random_erasing: Fraction = Field(0.0, description="Probability of setting a rectangle to the mean (Zhong et al. 2020).")
    mixup: NonNegative = Field(0.0, description="Alpha of the Beta distribution of mixup (Zhang et al. 2018); 0 is off.")
    cutmix: NonNegative = Field(
        0.0, description="Alpha of the Beta distribution of CutMix (Yun et al. 2019); 0 is off. With mixup, each batch takes one of the two."
    )

    @field_validator("random_resized_crop")
    @classmethod
    def _area_range(cls, area: list[float] | None) -> list[float] | None:
        if area is not None and not area[0] <= area[1] <= 1.0:
            raise ValueError(f"expected [least, most] with least <= most <= 1, got {area}")
        return area

    @field_validator("crop_ratio")
    @classmethod
    def _ratio_range(cls, ratio: list[float]) -> list[float]:
        if ratio[0] > ratio[1]:
            raise ValueError(f"expected [least, most], got {ratio}")
        return ratio

    @field_validator("color_jitter")
    @classmethod
    def _hue_range(cls, strengths: list[float] | None) -> list[float] | None:
        if strengths is not None and strengths[3] > 0.5:
            raise ValueError(f"expected a hue (the fourth number) of at most 0.5, got {strengths[3]:g}")
        return strengths

    @model_validator(mode="after")
    def _one_crop(self) -> Self:
        if self.random_resized_crop is not None and self.random_crop is not None:
            raise ValueError("give random_resized_crop or random_crop, not both")
        return self


class SamSection(Section):
    """Sharpness-aware minimisation around the optimiser (Foret et al. 2021; adaptive: Kwon et al. 2021)."""

    rho: Positive = Field(0.05, description="Radius of the perturbation.")
    adaptive: bool = Field(False, description="Scale the perturbation by the size of each weight (ASAM).")


class OptimizerSection(Section):
    """The update rule of a phase."""

    name: Literal["adam", "adamw", "sgd"] = Field(description="adam (weight decay in the gradient), adamw (decoupled) or sgd.")
    lr: Positive = Field(description="Peak learning rate; the schedule multiplies it.")
    weight_decay: NonNegative = Field(0.0, description="Weight decay.")
    exclude_norm_bias: bool = Field(False, description="No weight decay on biases and normalisation weights (tensors of one dimension).")
    momentum: Fraction = Field(0.9, description="sgd: momentum.")
    nesterov: bool = Field(False, description="sgd: Nesterov momentum.")
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
    metric: Literal["accuracy", "miou", "loss"] | None = Field(None, description="Validation number that is watched; default: the task's own, accuracy or miou.")


class LossTerm(Section):
    """One term of a loss. Means are over the valid pixels of the batch, or over its images where an image has one value (dice, lovasz)."""

    name: Literal["cross_entropy", "poly1", "focal", "poly1_focal", "dice", "lovasz"] = Field(
        description="cross_entropy, poly1 (Leng et al. 2022), focal (Lin et al. 2017), poly1_focal, dice or lovasz (Berman et al. 2018)."
    )
    weight: Positive = Field(1.0, description="Factor of the term in the sum.")
    epsilon: Annotated[float, Field(ge=-1.0)] = Field(1.0, description="poly1, poly1_focal: epsilon of the first polynomial term.")
    gamma: NonNegative = Field(2.0, description="focal, poly1_focal: exponent of (1 - p).")


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
            raise ValueError("a loss of several terms is name: sum with terms: [...]" if self.terms else "sum needs terms, e.g. [{name: cross_entropy}, {name: dice}]")
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


class EverySection(Section):
    """Epochs at a fixed distance."""

    every: Count = Field(description="Epochs k, 2k, 3k … and the last one.")


EpochWord = Literal["first", "middle", "last"]
EPOCH_WORDS: list[EpochWord | int] = ["first", "middle", "last"]
MapMethod = Literal["attention", "rollout", "grad_cam", "relevance"]
MaskValue = Annotated[int, Field(ge=0, le=65535)]
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


class ScoringSection(Section):
    """How predicted masks are scored. Always from one confusion matrix over the whole split, at each mask's own size."""

    convention: Literal["standard", "foreground", "deepglobe", "course_script"] = Field(
        "standard",
        description="standard: all classes, ignored pixels count nowhere; foreground: the class background is left out of the mean; deepglobe: the class unknown "
        "is as ignored; course_script: as deepglobe, but what is predicted on ignored pixels counts as false positive.",
    )
    excluded: list[str] | None = Field(None, description="Classes that are left out of the mean, though their pixels count; default: the convention's.")
    void: Literal["ignored", "false_positive"] | None = Field(
        None, description="What is predicted on ignored pixels: counts nowhere, or as false positive of its class; default: the convention's."
    )
    boundary_tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = Field(
        0.0075, description="Boundary F-score: how far boundaries may lie apart, as a fraction of the image's diagonal (Csurka et al. 2013)."
    )
    tile_overlap: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        0.25, description="Images larger than image_size are predicted in tiles: least share of a side that neighbours have in common."
    )


class Recipe(Section):
    """Everything that decides a run."""

    task: Literal["classification", "segmentation"] = Field(description="What is learned.")
    data: DataSection = Field(description="Images and labels.")
    model: ModelSection = Field(description="The network.")
    augment: AugmentSection = Field(default_factory=lambda: AugmentSection.model_validate({}), description="Random changes of training images.")
    loss: LossSection = Field(default_factory=lambda: LossSection.model_validate({}), description="What is minimised.")
    train: TrainSection = Field(description="How the weights are found.")
    scoring: ScoringSection | None = Field(None, validate_default=True, description="segmentation: how predicted masks are scored.")
    inside: InsideSection | None = Field(None, description="What is kept at chosen epochs for looking inside the model.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="Seed of every random draw.")

    @property
    def epochs(self) -> int:
        """Passes over the training set, all phases together."""
        return sum(phase.epochs for phase in self.train.phases)

    @property
    def masked(self) -> bool:
        """Whether a sample is an image with a mask."""
        return self.task == "segmentation"

    @field_validator("data")
    @classmethod
    def _data_fits(cls, data: DataSection, info: ValidationInfo) -> DataSection:
        task = info.data.get("task")
        if task == "segmentation" and data.source not in MASK_SOURCES:
            raise ValueError(f"source: segmentation needs a mask for each image: {' or '.join(MASK_SOURCES)}; {data.source} has none")
        if task == "classification" and data.source == "pairs":
            raise ValueError("source: pairs has masks and no labels; set task: segmentation")
        return data

    @field_validator("model")
    @classmethod
    def _model_fits(cls, model: ModelSection, info: ValidationInfo) -> ModelSection:
        task = info.data.get("task")
        homes = HOMES_OF_TASK.get(str(task), MODEL_HOMES)
        if model.name.partition("/")[0] not in homes:
            raise ValueError(f"name: {task} takes {', '.join(f'{home}/<name>' for home in homes)}; got {model.name!r}")
        if task != "segmentation" and (model.pretrained == "backbone" or model.backbone_weights is not None):
            raise ValueError("a backbone with weights of its own belongs to segmentation; give pretrained: true or weights: FILE")
        if task == "segmentation" and (model.drop_rate is not None or model.drop_path_rate is not None):
            raise ValueError("drop_rate and drop_path_rate belong to classification; give dropout in options, by the name that the model has for it")
        return model

    @field_validator("augment")
    @classmethod
    def _augment_fits(cls, augment: AugmentSection, info: ValidationInfo) -> AugmentSection:
        if info.data.get("task") == "segmentation" and (augment.mixup or augment.cutmix):
            raise ValueError(f"{'mixup' if augment.mixup else 'cutmix'} mixes labels of images and belongs to classification")
        return augment

    @field_validator("loss")
    @classmethod
    def _loss_fits(cls, loss: LossSection, info: ValidationInfo) -> LossSection:
        if info.data.get("task") == "classification" and loss.name != "cross_entropy":
            raise ValueError(f"name: classification is trained with cross_entropy; {loss.name} is a loss over pixels and belongs to segmentation")
        return loss

    @field_validator("train")
    @classmethod
    def _train_fits(cls, train: TrainSection, info: ValidationInfo) -> TrainSection:
        metric, wrong = train.early_stop.metric if train.early_stop else None, {"classification": "miou", "segmentation": "accuracy"}
        if metric is not None and metric == wrong.get(str(info.data.get("task"))):
            raise ValueError(f"early_stop.metric: {info.data['task']} has no {metric}")
        return train

    @field_validator("scoring")
    @classmethod
    def _scoring_fits(cls, scoring: ScoringSection | None, info: ValidationInfo) -> ScoringSection | None:
        """Segmentation always has one, so that every value stands in resolved.yaml."""
        task = info.data.get("task")
        if task == "classification" and scoring is not None:
            raise ValueError("scoring says how masks are scored and belongs to segmentation")
        return ScoringSection.model_validate({}) if task == "segmentation" and scoring is None else scoring

    @model_validator(mode="after")
    def _early_stop_needs_val(self) -> Self:
        needs = [("early_stop", self.train.early_stop is not None), ("keep: best", self.train.keep == "best")]
        for name, wanted in needs:
            if wanted and self.data.val is None and ":" not in self.data.source:
                raise ValueError(f"train.{name} needs data.val")
        return self

    @field_validator("inside")
    @classmethod
    def _inside_fits(cls, inside: InsideSection | None, info: ValidationInfo) -> InsideSection | None:
        """A validator of the field and not of the recipe, so that a fault has the place of `inside`."""
        data, train = info.data.get("data"), info.data.get("train")
        if inside is None or data is None or train is None:
            return inside
        if info.data.get("task") == "segmentation":
            inside = _for_masks(inside)
        total = sum(phase.epochs for phase in train.phases)
        asked = [inside.epochs.every] if isinstance(inside.epochs, EverySection) else inside.chosen_epochs(total)
        if beyond := [epoch for epoch in asked if epoch > total]:
            raise ValueError(f"epochs: {beyond[0]} is beyond the {total} epochs of train.phases")
        if inside.split == "val" and data.val is None and ":" not in data.source:
            raise ValueError("split val needs data.val; give it, or set split: train")
        if inside.classes and info.data.get("task") == "classification":
            raise ValueError("classes belongs to segmentation: the maps of classification are of the label of each picture")
        if inside.masks is not None and data.source == "scenes":
            raise ValueError("scenes have masks of their own; remove masks")
        if inside.masks is None and data.source != "scenes" and (inside.mask_target or inside.mask_ignore):
            raise ValueError(f"{'mask_target' if inside.mask_target else 'mask_ignore'} needs masks, the folder of the masks")
        return inside


def _for_masks(inside: InsideSection) -> InsideSection:
    """`inside` of a segmentation: the masks of the data are what pictures are measured by, and there are no features of whole images."""
    for name in ("masks", "mask_target", "mask_ignore", "projections"):
        if getattr(inside, name):
            raise ValueError(f"{name} belongs to classification: segmentation measures by the masks of its data and has no features of whole images")
    if inside.features and "features" in inside.model_fields_set:
        raise ValueError("features belongs to classification: segmentation has no features of whole images; leave it out")
    return inside.model_copy(update={"features": 0})
