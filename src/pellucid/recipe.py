"""The recipe: its schema, and how a YAML file becomes a checked `Recipe`.

YAML is read as version 1.2 (`no` is a string, `1e-3` a number) with the place of every key kept, so that all
faults of a file are reported at once, each with file:line:column, what was expected and the nearest known name.
`extends: other.yaml` lays a recipe over another one: flat (the other may not extend) and single (one name).
Mappings are merged key by key, lists and scalars replaced.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pellucid.errors import MissingError, Problem, RecipeError, did_you_mean

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]

SOURCES = ("folder", "prefix", "table", "scenes", "digits", "torchvision:<Name>", "huggingface:<name>")
DRAWN_SOURCES = ("scenes", "digits")
MODEL_HOMES = ("timm", "torchvision")


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

    source: str = Field(description="Layout: folder, prefix, table, scenes, digits, torchvision:<Name>, huggingface:<name>.")
    train: str | Count | None = Field(None, description="Training images: a folder, a CSV (table) or a count (scenes, digits).")
    val: str | Count | float | None = Field(None, description="Validation images: as train, or a fraction of train in (0, 1) split by content hash.")
    test: str | Count | None = Field(None, description="Test images, evaluated once after training.")
    image_dir: str | None = Field(None, description="table: folder of the images, `{split}` stands for train, val or test; default: beside the CSV.")
    filename_column: str = Field("filename", description="table: name of the column with file names.")
    label_column: str = Field("label", description="table: name of the column with labels.")
    classes: str | list[str] | None = Field(None, description="Class order: a text file with one name a line, or a list; default: classes.txt where there is one, else sorted.")
    image_size: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(224, description="Side in pixels of what the model sees, or [height, width].")
    fit: Literal["crop", "stretch", "pad"] = Field("crop", description="How an image meets image_size: short side resized and centre cropped, both sides resized, or long side resized and padded.")
    resize_size: Count | None = Field(None, description="crop: length in pixels of the short side before the centre crop; default: image_size.")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="Filter when images are resized; both are antialiased.")
    normalize: Literal["model", "dataset", "imagenet", "none"] | Normalization = Field("model", description="Mean and std: the model's own, measured from the training set, ImageNet's, none, or given as {mean, std}.")
    on_bad: Literal["refuse", "skip"] = Field("refuse", description="A bad image: refuse to start, or leave it out and name it in run and report.")
    store: StoreSection = Field(default_factory=StoreSection, description="Where decoded images are kept.")
    workers: Annotated[int, Field(ge=0)] = Field(2, description="Threads that decode and read ahead; the result does not depend on it.")

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        plain = [name for name in SOURCES if ":" not in name]
        home, colon, name = source.partition(":")
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
            if not drawn and not hub and isinstance(value, int):
                raise ValueError(f"source {self.source} takes a path for {split}, got the number {value}")
        if isinstance(self.val, float) and not 0.0 < self.val < 1.0:
            raise ValueError(f"val as a fraction lies between 0 and 1, got {self.val:g}")
        if self.resize_size is not None and (self.fit != "crop" or self.resize_size < min(self.size)):
            raise ValueError("resize_size belongs to fit: crop and is at least image_size")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the model sees."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size[0], self.image_size[1]


class ModelSection(Section):
    """The network and where its weights come from."""

    name: str = Field(description="Home and name: timm/<name> or torchvision/<name>.")
    pretrained: bool = Field(False, description="Start from the published weights of that name (downloaded or from the hub's local cache).")
    weights: str | None = Field(None, description="Start from a local .safetensors, .pth or .pt file.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the model's constructor, e.g. {channel_multiplier: 0.25}.")
    freeze: Literal["none", "backbone"] | list[str] = Field("none", description="Parts that are not trained: none, backbone (all but the classifier), or a list of module-path prefixes.")
    drop_rate: Fraction | None = Field(None, description="Dropout before the classifier; default: the model's own.")
    drop_path_rate: Fraction | None = Field(None, description="Stochastic depth (Huang et al. 2016); default: the model's own.")

    @model_validator(mode="after")
    def _home_and_weights(self) -> Self:
        home, slash, name = self.name.partition("/")
        if not slash or not name or home not in MODEL_HOMES:
            raise ValueError(f"name: expected {' or '.join(h + '/<name>' for h in MODEL_HOMES)}, got {self.name!r}.{did_you_mean(home, MODEL_HOMES)}")
        if self.pretrained and self.weights is not None:
            raise ValueError("give pretrained: true or weights: FILE, not both")
        return self


class AugmentSection(Section):
    """Random changes of training images, in the order of these fields. Every draw depends on seed, epoch, sample and operation alone."""

    random_resized_crop: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(None, description="Area of the crop as [least, most] fraction of the image, resized to image_size.")
    crop_ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field([0.75, 1.3333333333333333], description="Aspect ratio (width / height) range of random_resized_crop.")
    random_crop: Annotated[int, Field(ge=0)] | None = Field(None, description="Zero padding in pixels on every side before a random crop of image_size.")
    horizontal_flip: Fraction = Field(0.0, description="Probability of mirroring left and right.")
    vertical_flip: Fraction = Field(0.0, description="Probability of mirroring top and bottom.")
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = Field(0.0, description="Largest rotation in degrees, either way; uncovered pixels are 0.")
    color_jitter: Annotated[list[NonNegative], Field(min_length=4, max_length=4)] | None = Field(None, description="[brightness, contrast, saturation, hue] strengths; hue at most 0.5.")
    color_jitter_probability: Fraction = Field(1.0, description="Probability that an image is jittered.")
    grayscale: Fraction = Field(0.0, description="Probability of removing colour.")
    gaussian_blur: Fraction = Field(0.0, description="Probability of a blur with sigma drawn from [0.1, 2.0] pixels and a kernel of a tenth of the image.")
    solarize: Fraction = Field(0.0, description="Probability of inverting all pixels of at least 0.5.")
    random_erasing: Fraction = Field(0.0, description="Probability of setting a rectangle to the mean (Zhong et al. 2020).")
    mixup: NonNegative = Field(0.0, description="Alpha of the Beta distribution of mixup (Zhang et al. 2018); 0 is off.")
    cutmix: NonNegative = Field(0.0, description="Alpha of the Beta distribution of CutMix (Yun et al. 2019); 0 is off. With mixup, each batch takes one of the two.")

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
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field([0.9, 0.999], description="adam, adamw: decay rates of the two moments.")
    eps: Positive = Field(1e-8, description="adam, adamw: added to the denominator.")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="Layer-wise learning-rate decay: each layer below the classifier has this times the rate of the one above (Clark et al. 2020).")
    sam: SamSection | None = Field(None, description="Sharpness-aware minimisation around this optimiser.")


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

    epochs: Count = Field(description="Passes over the training set.")
    optimizer: OptimizerSection = Field(description="The update rule.")
    schedule: Schedule = Field(ConstantSchedule(name="constant"), description="Learning rate as a function of the step within the phase.")


class EmaSection(Section):
    """An exponential moving average of the weights, which is then what is evaluated and kept."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.999, description="Share of the old average kept at each step.")


class EarlyStopSection(Section):
    """Stop a run that no longer improves."""

    patience: Count = Field(description="Evaluations without improvement before training stops.")
    metric: Literal["accuracy", "loss"] = Field("accuracy", description="Validation number that is watched.")


class LossSection(Section):
    """What is minimised."""

    name: Literal["cross_entropy"] = Field("cross_entropy", description="Cross-entropy with hard or soft targets.")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Share of the target spread over all classes (Szegedy et al. 2016).")
    class_weights: Literal["none", "balanced"] | list[NonNegative] = Field("none", description="Weight of each class: none, balanced (inverse frequency, mean 1 over samples), or a list in class order.")


class TrainSection(Section):
    """How the weights are found."""

    batch_size: Count = Field(32, description="Effective batch: images whose mean gradient makes one step.")
    micro_batch_size: Count | Literal["auto"] = Field("auto", description="Images in memory at once; auto starts at batch_size and halves when memory runs out.")
    phases: list[PhaseSection] = Field(min_length=1, description="One or more stretches of training, in order.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Number format of the forward and backward pass; weights stay fp32.")
    channels_last: bool = Field(False, description="Memory format of images and convolutions.")
    compile: bool = Field(False, description="torch.compile the model.")
    clip_grad_norm: Positive | None = Field(None, description="Largest L2 norm of the gradient of a step.")
    ema: EmaSection | None = Field(None, description="Moving average of the weights.")
    balanced_sampling: bool = Field(False, description="Draw every class equally often (with replacement); an epoch keeps its length.")
    early_stop: EarlyStopSection | None = Field(None, description="Stop when validation no longer improves.")
    keep: Literal["last", "best"] = Field("last", description="Weights that are reported: those of the last epoch, or of the best validation accuracy (then the number is selected on val, and says so).")
    evaluate_every: Count = Field(1, description="Epochs between evaluations on val; the last epoch is always evaluated.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one.")
    threads: Count | None = Field(None, description="CPU threads of torch; default: the number of cores. Part of what fixes the bits.")


class Recipe(Section):
    """Everything that decides a run."""

    task: Literal["classification"] = Field(description="What is learned.")
    data: DataSection = Field(description="Images and labels.")
    model: ModelSection = Field(description="The network.")
    augment: AugmentSection = Field(default_factory=lambda: AugmentSection.model_validate({}), description="Random changes of training images.")
    loss: LossSection = Field(default_factory=lambda: LossSection.model_validate({}), description="What is minimised.")
    train: TrainSection = Field(description="How the weights are found.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="Seed of every random draw.")

    @property
    def epochs(self) -> int:
        """Passes over the training set, all phases together."""
        return sum(phase.epochs for phase in self.train.phases)

    @model_validator(mode="after")
    def _early_stop_needs_val(self) -> Self:
        needs = [("early_stop", self.train.early_stop is not None), ("keep: best", self.train.keep == "best")]
        for name, wanted in needs:
            if wanted and self.data.val is None and ":" not in self.data.source:
                raise ValueError(f"train.{name} needs data.val")
        return self


# ── a YAML file and the places of its keys ────────────────────────────────────────────────────────────────────

Path_ = tuple[str | int, ...]
Places = dict[Path_, tuple[str, int | None, int | None]]

# Values that are paths; each is resolved against the folder of the file that holds it.
_PATH_FIELDS = (("data", "train"), ("data", "val"), ("data", "test"), ("data", "image_dir"), ("data", "classes"), ("data", "store", "directory"), ("model", "weights"))
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a file, with `key.path=value` overrides laid over it.

    Raises RecipeError with every fault found, MissingError when the file is not there.
    """
    file = Path(path)
    values, places, problems = _read(file, extendable=True)
    for override in overrides:
        _apply(values, places, problems, override)
    return _check(values, places, problems, str(file))


def loads(text: str, name: str = "<recipe>") -> Recipe:
    """The checked recipe of a YAML text whose paths are absolute or relative to the working folder."""
    values, places, problems = _parse(text, name, Path.cwd())
    return _check(values, places, problems, name)


def save(recipe: Recipe, path: Path) -> None:
    """Write every value of a recipe, defaults included, as YAML that `load` reads back equal."""
    path.write_text(to_yaml(recipe))


def to_yaml(recipe: Recipe) -> str:
    buffer = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.dump(recipe.model_dump(mode="json"), buffer)
    return buffer.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "Another recipe that this one is laid over."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def flat(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of every leaf; lists of mappings are counted (`train.phases.0.epochs`)."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else name)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                yield from walk(item, f"{key}.{i}")
        else:
            yield key, value

    return dict(walk(recipe.model_dump(mode="json"), ""))


def _read(file: Path, *, extendable: bool) -> tuple[dict[str, Any], Places, list[Problem]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingError(f"{file}: no such recipe. `pellucid recipes ls` shows those that come with Pellucid.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(file), None, None, f"expected a YAML text file in UTF-8: {error}")]) from None
    values, places, problems = _parse(text, str(file), file.parent)
    parent = values.pop("extends", None)
    if parent is None:
        return values, places, problems
    place = places[("extends",)]
    if not isinstance(parent, str):
        return values, places, [*problems, Problem(*place, f"extends takes one file name, got {parent!r}")]
    if not extendable:
        return values, places, [*problems, Problem(*place, "a recipe that is extended may not extend another one; put the settings into one file")]
    try:
        below, below_places, below_problems = _read(file.parent / parent, extendable=False)
    except MissingError:
        return values, places, [*problems, Problem(*place, f"extends {parent!r}: there is no such file beside this recipe")]
    return _merge(below, values), below_places | places, below_problems + problems


def _parse(text: str, name: str, folder: Path) -> tuple[dict[str, Any], Places, list[Problem]]:
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        values = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise RecipeError([Problem(name, *where, f"not valid YAML: {error.problem or error.context}")]) from None
    except Exception as error:  # the YAML library raises plain ValueError and others on odd scalars and characters
        raise RecipeError([Problem(name, 1, 1, f"not valid YAML: {str(error).splitlines()[0] if str(error) else error!r}")]) from None
    if not isinstance(values, dict) or node is None:
        raise RecipeError([Problem(name, 1, 1, f"expected a mapping with task, data, model and train, got {_kind(values)}")])
    places: Places = {(): (name, 1, 1)}
    _note_places(node, (), name, places)
    problems: list[Problem] = []
    for field in _PATH_FIELDS:
        _resolve_path(values, field, folder, places, problems)
    return values, places, problems


def _note_places(node: Node, path: Path_, file: str, places: Places) -> None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            places[(*path, key.value)] = (file, key.start_mark.line + 1, key.start_mark.column + 1)
            _note_places(value, (*path, key.value), file, places)
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            places[(*path, i)] = (file, value.start_mark.line + 1, value.start_mark.column + 1)
            _note_places(value, (*path, i), file, places)


def _resolve_path(values: dict[str, Any], field: tuple[str, ...], folder: Path, places: Places, problems: list[Problem]) -> None:
    holder: Any = values
    for key in field[:-1]:
        holder = holder.get(key) if isinstance(holder, dict) else None
    value = holder.get(field[-1]) if isinstance(holder, dict) else None
    if not isinstance(value, str) or ":" in str(values.get("data", {}).get("source", "") if isinstance(values.get("data"), dict) else "") and field[0] == "data" and field[1] in ("train", "val", "test"):
        return  # for torchvision: and huggingface: these are names of splits

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            problems.append(Problem(*places[field], f"the environment variable {match[1]} is not set; set it or write ${{{match[1]}:-default}}"))
        return found or ""

    holder[field[-1]] = os.path.normpath(folder.absolute() / Path(_VARIABLE.sub(variable, value)).expanduser())


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(values: dict[str, Any], places: Places, problems: list[Problem], override: str) -> None:
    """Lay one `a.b.0.c=value` over the values; a list index must exist."""
    name = f"-s {override}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        problems.append(Problem(name, None, None, "expected key.path=value, for example train.batch_size=64"))
        return
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # as in _parse
        problems.append(Problem(name, None, None, f"the value is not valid YAML: {str(error).splitlines()[0]}"))
        return
    path: Path_ = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    holder: Any = values
    for depth, part in enumerate(path[:-1], 1):
        if isinstance(holder, dict) and isinstance(part, str):
            if part not in holder:
                places[path[:depth]] = (name, None, None)
            holder = holder.setdefault(part, {})
        elif isinstance(holder, list) and isinstance(part, int) and part < len(holder):
            holder = holder[part]
        else:
            holder = None
            break
    last = path[-1]
    if isinstance(holder, dict):
        holder[last] = value
    elif isinstance(holder, list) and isinstance(last, int) and last < len(holder):
        holder[last] = value
    else:
        problems.append(Problem(name, None, None, f"there is nothing at {key!r} that could be set"))
        return
    for old in [p for p in places if p[: len(path)] == path]:
        del places[old]
    places[path] = (name, None, None)
    if path in _PATH_FIELDS:
        _resolve_path(values, tuple(str(part) for part in path), Path.cwd(), places, problems)


def _check(values: dict[str, Any], places: Places, problems: list[Problem], file: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        found = [_problem(dict(item), values, places, file) for item in error.errors(include_url=False)]
        raise RecipeError(sorted(_joined([*problems, *found]), key=lambda p: (p.file, p.line or 0, p.column or 0))) from None
    if problems:
        raise RecipeError(problems)
    return recipe


def _joined(problems: list[Problem]) -> list[Problem]:
    """The problems, those about one value of a union (`expected a, got x`; `expected b, got x`) as one."""
    joined: dict[tuple[Any, ...], Problem] = {}
    for p in problems:
        head, expected, rest = p.message.partition(": expected ")
        what, _, got = rest.rpartition("; got ")
        key = (p.file, p.line, p.column, head, got) if expected and got else (p.file, p.line, p.column, p.message)
        if key in joined and expected and what not in joined[key].message:
            before = joined[key].message.rpartition("; got ")[0]
            joined[key] = Problem(p.file, p.line, p.column, f"{before} or {what}; got {got}")
        joined.setdefault(key, p)
    return list(joined.values())


def _problem(error: dict[str, Any], values: dict[str, Any], places: Places, file: str) -> Problem:
    """One pydantic error as a sentence with its place in the file."""
    path, section = _locate(error["loc"], values)
    key = str(path[-1]) if path else ""
    dotted = ".".join(str(part) for part in path)
    context, kind, got = error.get("ctx", {}), error["type"], error["input"]
    match kind:
        case "extra_forbidden":
            hint = did_you_mean(key, section) or f" Known: {', '.join(section)}."
            message = f"unknown key {key!r} in {_section_name(path[:-1])}.{hint}"
        case "missing":
            message = f"{dotted} is missing"
        case "literal_error" | "union_tag_invalid":
            known = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
            tag = context.get("tag", got)
            if kind == "union_tag_invalid":
                path, dotted = (*path, "name"), f"{dotted}.name"
            message = f"{dotted}: expected {', '.join(known)}; got {tag!r}.{did_you_mean(str(tag), known)}"
        case "union_tag_not_found":
            message = f"{dotted}.name is missing"
        case "value_error":
            text = str(context["error"])
            message = f"{dotted}: {text}" if dotted else text
        case "dict_type" | "model_type" | "model_attributes_type":
            message = f"{dotted}: expected a mapping, got {_kind(got)}"
        case _:
            what = error["msg"].removeprefix("Input should be ").removeprefix("Value should be ")
            what = what.replace("a valid integer", "a whole number").replace("a valid ", "a ").replace("a string", "text").replace("a boolean", "true or false")
            message = f"{dotted}: expected {what[:1].lower()}{what[1:]}; got {_kind(got)}"
    while path not in places and path:
        path = path[:-1]
    return Problem(*places.get(path, (file, 1, 1)), message)


def _locate(loc: tuple[str | int, ...], values: dict[str, Any]) -> tuple[Path_, list[str]]:
    """The path in the file for a pydantic location (which also names union members), and the keys known at its parent."""
    path: list[str | int] = []
    holder: Any = values
    model: Any = Recipe
    for i, part in enumerate(loc):
        in_file = (isinstance(holder, dict) and part in holder) or (isinstance(holder, list) and isinstance(part, int))
        fields = model.model_fields if isinstance(model, type) and issubclass(model, Section) else {}
        if not in_file and part not in fields and i > 0:
            model = _member(model, str(part))  # the name of a union's member, not a key
            continue
        path.append(part)
        if i == len(loc) - 1 and part not in fields:
            return tuple(path), list(fields)
        holder = holder[part] if in_file else None
        model = fields[str(part)].annotation if part in fields else _element(model)
        if isinstance(holder, dict) and (section := _only_section(model)):
            model = section
    fields = model.model_fields if isinstance(model, type) and issubclass(model, Section) else {}
    return tuple(path), list(fields)


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for argument in getattr(annotation, "__args__", ()) for section in _sections(argument)]


def _only_section(annotation: Any) -> type[Section] | None:
    found = _sections(annotation)
    return found[0] if len(found) == 1 and getattr(annotation, "__origin__", None) is not list else None


def _member(annotation: Any, name: str) -> Any:
    for section in _sections(annotation):
        tag = section.model_fields.get("name")
        if section.__name__ == name or (tag is not None and name in getattr(tag.annotation, "__args__", ())):
            return section
    return annotation


def _element(annotation: Any) -> Any:
    arguments = getattr(annotation, "__args__", ())
    return arguments[0] if arguments else annotation


def _section_name(path: Path_) -> str:
    return ".".join(str(part) for part in path) or "the recipe"


def _kind(value: Any) -> str:
    """A value as a reader would name it."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return f"the list {value!r}" if len(repr(value)) < 60 else f"a list of {len(value)}"
        case bool():
            return f"{str(value).lower()} (a truth value)"
        case str():
            return f"{value!r} (text)"
        case _:
            return repr(value)
