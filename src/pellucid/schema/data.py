"""`data` and `augment`: where samples come from, how they become arrays, how training images are changed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pellucid.errors import did_you_mean
from pellucid.schema.section import MOST_DRAWN, Count, Fraction, NonNegative, Positive, Section

SOURCES = ("folder", "prefix", "table", "images", "pairs", "captions", "scenes", "digits", "torchvision:<Name>", "huggingface:<name>")
DRAWN_SOURCES = ("scenes", "digits")
MASK_SOURCES = ("pairs", "scenes")  # those with a mask for each image
CAPTION_SOURCES = ("captions", "scenes")  # those with captions for each image
Channel = Annotated[int, Field(ge=0, le=255)]
Colour = Channel | Annotated[list[Channel], Field(min_length=3, max_length=3)]  # a grey value or palette index, or [r, g, b]


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

    source: str = Field(
        description="Layout: folder, prefix, table, images (without labels), pairs, captions, scenes, digits, torchvision:<Name>, huggingface:<name>."
    )
    train: str | Count | None = Field(
        None, description="Training images: a folder, a CSV (table, captions), a COCO JSON (captions) or a count (scenes, digits)."
    )
    val: str | Count | float | None = Field(None, description="Validation images: as train, or a fraction of train in (0, 1) split by content hash.")
    test: str | Count | None = Field(None, description="Test images, evaluated once after training.")
    image_dir: str | None = Field(None, description="table, captions: folder of the images, `{split}` stands for train, val or test; default: beside the file.")
    filename_column: str = Field("filename", description="table, captions: name of the column with file names.")
    label_column: str = Field("label", description="table: name of the column with labels.")
    caption_column: str = Field("caption", description="captions: name of the column with captions; a file stands in a row for each of its captions.")
    split_column: str = Field("split", description="captions: name of the column that says train, val or test, where there is one.")
    boxes: str | None = Field(
        None, description="captions: COCO JSON of instances, whose boxes say where the things of the captions are; `{split}` stands for train, val or test."
    )
    mask_dir: str | None = Field(
        None,
        description="pairs: folder of the masks, `{split}` stands for train, val or test; default: <images>_masks where there is one, else beside the images.",
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
        "model",
        description="Mean and std: the model's own, or those that the backbone file states from which it starts; measured from the training set, ImageNet's, "
        "none, or given as {mean, std}.",
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
        if self.classes is not None and self.source in ("images", "captions"):
            raise ValueError(f"classes belongs to sources with labels, and {self.source} has none; leave it out")
        for name, sources in (("boxes", ("captions",)), ("image_dir", ("table", "captions"))):
            if getattr(self, name) is not None and self.source not in sources:
                raise ValueError(f"{name} belongs to source {' and '.join(sources)}, not to {self.source}")
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

    @property
    def changes(self) -> bool:
        """Whether any of the random changes is on."""
        chances = ("horizontal_flip", "vertical_flip", "rotation", "grayscale", "gaussian_blur", "solarize", "random_erasing", "mixup", "cutmix")
        jittered = self.color_jitter is not None and any(self.color_jitter) and self.color_jitter_probability > 0
        return self.random_resized_crop is not None or self.random_crop is not None or jittered or any(getattr(self, name) for name in chances)

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
