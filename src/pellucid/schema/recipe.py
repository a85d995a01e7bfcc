"""The whole recipe, `model` and `scoring`, and what of one section fits what of another."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pellucid.errors import did_you_mean
from pellucid.schema.captioning import DecoderSection, GenerationSection, TextSection, WordsSection
from pellucid.schema.data import CAPTION_SOURCES, MASK_SOURCES, AugmentSection, DataSection
from pellucid.schema.inside import EverySection, InsideSection
from pellucid.schema.pretraining import Method, ProbeSection
from pellucid.schema.section import Count, Fraction, Section
from pellucid.schema.training import LossSection, TrainSection

MODEL_HOMES = ("timm", "torchvision", "smp", "transformers", "pellucid")
CAPTIONER = "captioner"
OWN_MODELS = ("fcn32s", "fcn16s", "fcn8s", CAPTIONER)  # of the home pellucid
HOMES_OF_TASK = {
    "classification": ("timm", "torchvision"),
    "pretraining": ("timm", "torchvision"),
    "segmentation": ("pellucid", "torchvision", "smp"),
    "captioning": ("pellucid", "transformers"),
}


class HeadSection(Section):
    """What stands in the place of the model's classifier: a linear layer or a small network, on features as they are or standardised."""

    hidden: list[Count] = Field([], description="Widths of hidden layers, each followed by a ReLU; none: a linear layer (linear probe).")
    standardize: bool = Field(
        True, description="Each feature minus its mean over its standard deviation on the training images; measured once, so freeze: backbone alone."
    )


class ModelSection(Section):
    """The network and where its weights come from."""

    name: str = Field(
        description="Home and name: timm/<name>, torchvision/<name>; segmentation: torchvision/<name>, smp/<name>, pellucid/fcn32s, fcn16s, fcn8s; captioning: "
        "pellucid/captioner, transformers/<name on the hub or folder>."
    )
    pretrained: bool | Literal["backbone"] = Field(
        False,
        description="Start from the published weights of that name, or of its backbone alone (segmentation); downloaded or from the hub's local cache.",
    )
    weights: str | None = Field(None, description="Start from a local .safetensors, .pth or .pt file: of a whole model or of its backbone.")
    encoder: str | None = Field(
        None, description="smp: name of the backbone, e.g. resnet50 or tu-<name of timm>; default: the model's own. pellucid/captioner: timm/<name>."
    )
    encoder_stride: Count | None = Field(
        None, description="pellucid/captioner: pixels of the picture for each cell of the grid that the decoder looks at; default: the backbone's coarsest."
    )
    decoder: DecoderSection | None = Field(None, description="pellucid/captioner: the transformer decoder.")
    backbone_weights: str | None = Field(
        None, description="segmentation, captioning: start the backbone from a local file of a classifier's weights or of its backbone."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the model's constructor, e.g. {channel_multiplier: 0.25}.")
    freeze: Literal["none", "backbone"] | list[str] = Field(
        "none", description="Parts that are not trained: none, backbone (all but the classifier), or a list of module-path prefixes."
    )
    head: HeadSection | None = Field(None, description="classification: a classifier of our own in the place of the model's.")
    cached_views: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0,
        description="freeze: backbone: features are computed once, for so many augmented views of each training image (1 without augmentation), and kept; "
        "0: the backbone runs in every epoch.",
    )
    drop_rate: Fraction | None = Field(None, description="Dropout before the classifier; default: the model's own.")
    drop_path_rate: Fraction | None = Field(None, description="Stochastic depth (Huang et al. 2016); default: the model's own.")

    @model_validator(mode="after")
    def _home_and_weights(self) -> Self:
        home, slash, name = self.name.partition("/")
        if not slash or not name or home not in MODEL_HOMES:
            hint = f" Did you mean 'pellucid/{self.name}'?" if self.name in OWN_MODELS else did_you_mean(home, MODEL_HOMES)
            raise ValueError(f"name: expected {' or '.join(h + '/<name>' for h in MODEL_HOMES)}, got {self.name!r}.{hint}")
        given = [name for name in ("pretrained", "weights", "backbone_weights") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError("give pretrained: true or weights: FILE, not both" if "backbone_weights" not in given else f"give {' or '.join(given)}, not both")
        return self


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

    task: Literal["classification", "pretraining", "segmentation", "captioning"] = Field(description="What is learned.")
    data: DataSection = Field(description="Images and labels.")
    model: ModelSection = Field(description="The network.")
    method: Method | None = Field(None, validate_default=True, description="pretraining: what is learned without labels.")
    augment: AugmentSection = Field(
        default_factory=lambda: AugmentSection.model_validate({}), validate_default=True, description="Random changes of training images."
    )
    loss: LossSection = Field(default_factory=lambda: LossSection.model_validate({}), description="What is minimised.")
    train: TrainSection = Field(description="How the weights are found.")
    scoring: ScoringSection | None = Field(None, validate_default=True, description="segmentation: how predicted masks are scored.")
    probe: ProbeSection | None = Field(None, validate_default=True, description="pretraining: how labelled images measure the features.")
    text: TextSection | None = Field(None, validate_default=True, description="captioning: how captions become tokens.")
    generation: GenerationSection | None = Field(None, validate_default=True, description="captioning: how a caption is found.")
    words: WordsSection | None = Field(None, validate_default=True, description="captioning: where the decoder looked for each word.")
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

    @property
    def captioned(self) -> bool:
        """Whether a sample is an image with captions."""
        return self.task == "captioning"

    @property
    def fewest_classes(self) -> int:
        """How many classes the data must have at least: pre-training and captioning learn from no label."""
        return 1 if self.task in ("pretraining", "captioning") else 2

    @property
    def least_size(self) -> tuple[int, int] | None:
        """(height, width) that a training image must have for its crop to be cut; None where images are resized to what is needed."""
        if self.data.fit != "native" or self.augment.random_resized_crop is not None:
            return None
        height, width = (max(1, side - 2 * (self.augment.random_crop or 0)) for side in self.data.size)
        return height, width

    @field_validator("data")
    @classmethod
    def _data_fits(cls, data: DataSection, info: ValidationInfo) -> DataSection:
        task = info.data.get("task")
        if task == "segmentation" and data.source not in MASK_SOURCES:
            raise ValueError(f"source: segmentation needs a mask for each image: {' or '.join(MASK_SOURCES)}; {data.source} has none")
        if task == "captioning" and data.source not in CAPTION_SOURCES:
            raise ValueError(f"source: captioning needs captions for each image: {' or '.join(CAPTION_SOURCES)}; {data.source} has none")
        if task != "captioning" and data.source == "captions":
            raise ValueError("source: captions has captions and no labels; set task: captioning")
        if task == "classification" and data.source == "pairs":
            raise ValueError("source: pairs has masks and no labels; set task: segmentation")
        if task == "classification" and data.source == "images":
            raise ValueError("source: images has no labels and belongs to pretraining; classification takes folder, prefix or table")
        if task == "pretraining" and data.source == "pairs":
            raise ValueError("source: pairs has masks, and pretraining looks at images alone; take source: images")
        return data

    @field_validator("model")
    @classmethod
    def _model_fits(cls, model: ModelSection, info: ValidationInfo) -> ModelSection:
        task = info.data.get("task")
        homes = HOMES_OF_TASK.get(str(task), MODEL_HOMES)
        if model.name.partition("/")[0] not in homes:
            raise ValueError(f"name: {task} takes {', '.join(f'{home}/<name>' for home in homes)}; got {model.name!r}")
        if task == "captioning":
            return _captioner(model)
        if task != "segmentation" and model.encoder is not None:
            raise ValueError(f"encoder belongs to segmentation models of smp, got {model.encoder!r} for {model.name}")
        if task != "segmentation" and (model.pretrained == "backbone" or model.backbone_weights is not None):
            raise ValueError("a backbone with weights of its own belongs to segmentation and captioning; give pretrained: true or weights: FILE")
        if task is not None and (own := next((name for name in ("decoder", "encoder_stride") if getattr(model, name) is not None), None)):
            raise ValueError(f"{own} belongs to pellucid/captioner; the task is {task}")
        if task == "segmentation" and model.name == f"pellucid/{CAPTIONER}":
            raise ValueError(f"name: {model.name} describes pictures in words; set task: captioning")
        if task == "segmentation" and (model.drop_rate is not None or model.drop_path_rate is not None):
            raise ValueError("drop_rate and drop_path_rate belong to classification; give dropout in options, by the name that the model has for it")
        if task != "classification" and (model.head is not None or model.cached_views):
            raise ValueError(f"{'head' if model.head is not None else 'cached_views'} belongs to classification")
        if model.cached_views and model.freeze != "backbone":
            raise ValueError("cached_views: features can be kept only of a backbone that does not change; set freeze: backbone")
        if model.head is not None and model.head.standardize and model.freeze != "backbone":
            raise ValueError("head.standardize: features are measured once, before training; set freeze: backbone, or standardize: false")
        if task == "pretraining" and model.freeze != "none":
            raise ValueError("freeze: a backbone that is pre-trained is trained whole; set freeze: none")
        return model

    @field_validator("method")
    @classmethod
    def _method_fits(cls, method: Method | None, info: ValidationInfo) -> Method | None:
        task = info.data.get("task")
        if task == "pretraining" and method is None:
            raise ValueError("pretraining needs a method, e.g. method: {name: byol}; there are byol, simclr and simsiam")
        if task not in (None, "pretraining") and method is not None:
            raise ValueError(f"method {method.name} belongs to pretraining; the task is {task}")
        return method

    @field_validator("augment")
    @classmethod
    def _augment_fits(cls, augment: AugmentSection, info: ValidationInfo) -> AugmentSection:
        task, model = info.data.get("task"), info.data.get("model")
        if task not in (None, "classification") and (augment.mixup or augment.cutmix):
            raise ValueError(f"{'mixup' if augment.mixup else 'cutmix'} mixes labels of images and belongs to classification")
        if task == "pretraining" and not augment.changes:
            raise ValueError(
                "the two views of an image would be equal, and nothing could be learned; the paper's: {random_resized_crop: [0.08, 1.0], horizontal_flip: 0.5, "
                "color_jitter: [0.4, 0.4, 0.2, 0.1], color_jitter_probability: 0.8, grayscale: 0.2, gaussian_blur: 1.0}"
            )
        if model is not None and model.cached_views and (augment.mixup or augment.cutmix):
            raise ValueError(
                f"{'mixup' if augment.mixup else 'cutmix'} mixes images, and model.cached_views keeps features of single ones; choose one of the two"
            )
        if model is not None and model.cached_views > 1 and not augment.changes:
            raise ValueError(f"model.cached_views: {model.cached_views} views of an image are {model.cached_views} times the same without augment; set it to 1")
        return augment

    @field_validator("loss")
    @classmethod
    def _loss_fits(cls, loss: LossSection, info: ValidationInfo) -> LossSection:
        task = info.data.get("task")
        if task in ("classification", "captioning") and loss.name != "cross_entropy":
            raise ValueError(f"name: {task} is trained with cross_entropy; {loss.name} is a loss over pixels and belongs to segmentation")
        if task == "captioning" and loss.class_weights != "none":
            raise ValueError("class_weights weighs labels, and captions have none; leave it out")
        chosen = [name for name, value in LossSection.model_validate({}) if getattr(loss, name) != value]  # resolved.yaml holds every default
        if info.data.get("task") == "pretraining" and chosen:
            raise ValueError(f"{chosen[0]}: the loss of pretraining follows from its method; leave loss out")
        model = info.data.get("model")
        if loss.auxiliary_weight != 0.5 and model is not None and not model.options.get("aux_loss") and not model.options.get("aux_params"):
            raise ValueError(
                f"auxiliary_weight {loss.auxiliary_weight:g} would do nothing: {model.name} has an auxiliary classifier with options: {{aux_loss: true}}"
            )
        if info.data.get("task") == "classification" and loss.class_weights == "median_frequency":
            raise ValueError("class_weights: median_frequency counts the pixels of masks and belongs to segmentation; take balanced")
        return loss

    @field_validator("train")
    @classmethod
    def _train_fits(cls, train: TrainSection, info: ValidationInfo) -> TrainSection:
        task, model = info.data.get("task"), info.data.get("model")
        if task == "pretraining":
            _check_pretraining(train)
        if model is not None and model.cached_views and any(phase.optimizer.layer_decay != 1.0 for phase in train.phases):
            raise ValueError("optimizer.layer_decay is for layers below the classifier, and model.cached_views freezes them all; leave it out")
        metric, known = train.early_stop.metric if train.early_stop else None, STOPPED_BY.get(str(task), ())
        if metric is not None and task is not None and metric not in known:
            raise ValueError(f"early_stop.metric: {task} has no {metric}; it has {', '.join(known)}")
        if task == "captioning" and train.balanced_sampling:
            raise ValueError("balanced_sampling draws by label, and captions have none; leave it out")
        return train

    @field_validator("scoring")
    @classmethod
    def _scoring_fits(cls, scoring: ScoringSection | None, info: ValidationInfo) -> ScoringSection | None:
        """Segmentation always has one, so that every value stands in resolved.yaml."""
        task = info.data.get("task")
        if task not in (None, "segmentation") and scoring is not None:
            raise ValueError("scoring says how masks are scored and belongs to segmentation")
        return ScoringSection.model_validate({}) if task == "segmentation" and scoring is None else scoring

    @field_validator("probe")
    @classmethod
    def _probe_fits(cls, probe: ProbeSection | None, info: ValidationInfo) -> ProbeSection | None:
        """Pre-training always has one, so that every value stands in resolved.yaml."""
        task = info.data.get("task")
        if task not in (None, "pretraining") and probe is not None:
            raise ValueError("probe measures features of pretraining; to probe a finished backbone train a classification with model.freeze: backbone")
        return ProbeSection.model_validate({}) if task == "pretraining" and probe is None else probe

    @field_validator("text", "generation", "words")
    @classmethod
    def _captions_fit(cls, section: Section | None, info: ValidationInfo) -> Section | None:
        """Captioning always has these sections, so that every value stands in resolved.yaml."""
        task, name = info.data.get("task"), str(info.field_name)
        if task not in (None, "captioning") and section is not None:
            raise ValueError(f"{name} belongs to captioning; the task is {task}")
        if task != "captioning":
            return section
        found = _OF_CAPTIONS[name].model_validate({}) if section is None else section
        text = info.data.get("text")
        if isinstance(found, GenerationSection) and text is not None and found.min_length >= text.max_length:
            raise ValueError(f"min_length {found.min_length} leaves no room below text.max_length {text.max_length}, the end among it")
        return found

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
        if info.data.get("task") == "captioning":
            raise ValueError("captioning looks at the words of captions: give words: {drawn: 12} instead of inside")
        if info.data.get("task") == "segmentation":
            inside = _for_masks(inside)
        if info.data.get("task") == "pretraining":
            inside = _for_features(inside)
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


STOPPED_BY = {  # numbers of an epoch that early stopping may watch
    "classification": ("accuracy", "loss"),
    "pretraining": (),
    "segmentation": ("miou", "loss"),
    "captioning": ("cider", "exact_match", "loss"),
}
_OF_CAPTIONS: dict[str, type[Section]] = {"text": TextSection, "generation": GenerationSection, "words": WordsSection}


def _captioner(model: ModelSection) -> ModelSection:
    """The model of captioning with its decoder; ValueError for what does not belong to it."""
    own = model.name == f"pellucid/{CAPTIONER}"
    if model.name.startswith("pellucid/") and not own:
        raise ValueError(f"name: {model.name} gives masks; captioning takes pellucid/{CAPTIONER} or transformers/<name on the hub or folder>")
    if own and (model.encoder is None or not model.encoder.startswith("timm/")):
        raise ValueError(f"encoder: {model.name} needs the backbone that sees the picture, timm/<name>; got {model.encoder!r}")
    if own and model.pretrained is True:
        raise ValueError(f"pretrained: {model.name} has no published weights; its backbone may have: pretrained: backbone")
    for name in ("encoder", "encoder_stride", "decoder", "backbone_weights"):
        if not own and getattr(model, name) is not None:
            raise ValueError(f"{name} belongs to pellucid/{CAPTIONER}; {model.name} brings its own parts")
    if not own and model.pretrained == "backbone":
        raise ValueError(f"pretrained: backbone belongs to pellucid/{CAPTIONER}; {model.name} takes true or false")
    for name, value in (("head", model.head), ("cached_views", model.cached_views), ("drop_rate", model.drop_rate), ("drop_path_rate", model.drop_path_rate)):
        if value:
            raise ValueError(f"{name} belongs to classification" + ("; dropout of the decoder is decoder.drop_rate" if name == "drop_rate" else ""))
    return model.model_copy(update={"decoder": model.decoder or DecoderSection.model_validate({})}) if own else model


def _check_pretraining(train: TrainSection) -> None:
    """ValueError for settings that need labels or a second average."""
    if train.ema is not None:
        raise ValueError("ema: the target network of byol is its own moving average, method.momentum; leave ema out")
    if train.balanced_sampling:
        raise ValueError("balanced_sampling draws by label, and pretraining knows none; leave it out")
    if train.early_stop is not None or train.keep == "best":
        raise ValueError(f"{'keep: best' if train.keep == 'best' else 'early_stop'} would choose by labels; pretraining ends after its epochs")
    if any(phase.optimizer.layer_decay != 1.0 for phase in train.phases):
        raise ValueError("optimizer.layer_decay counts layers below a classifier, and pretraining has none; leave it out")
    if any(phase.optimizer.sam is not None for phase in train.phases):
        raise ValueError("optimizer.sam takes every step twice and a moving target moves between; pretraining has none")


def _for_features(inside: InsideSection) -> InsideSection:
    """`inside` of pre-training: features and their projections; maps need a class that the model names."""
    for name in ("images", "samples", "methods", "masks", "mask_target", "mask_ignore", "classes"):
        if getattr(inside, name) and name in inside.model_fields_set:
            raise ValueError(f"{name}: maps ask what a model saw of a class, and pretraining knows none; features and projections can be kept")
    return inside.model_copy(update={"samples": 0})


def _for_masks(inside: InsideSection) -> InsideSection:
    """`inside` of a segmentation: the masks of the data are what pictures are measured by, and there are no features of whole images."""
    for name in ("masks", "mask_target", "mask_ignore", "projections"):
        if getattr(inside, name):
            raise ValueError(f"{name} belongs to classification: segmentation measures by the masks of its data and has no features of whole images")
    for name in ("features", "neighbours"):
        if getattr(inside, name) and name in inside.model_fields_set:
            raise ValueError(f"{name} belongs to classification: segmentation has no features of whole images; leave it out")
    return inside.model_copy(update={"features": 0, "neighbours": 0})
