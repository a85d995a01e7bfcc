"""`text`, `generation`, `words` and `model.decoder`: how captions become tokens, how they are found, and where the decoder looked for each word."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pellucid.schema.section import Count, Fraction, Section

MOST_TOKENS = 4096  # of a caption


class DecoderSection(Section):
    """The transformer decoder of pellucid/captioner: BERT's layers (Devlin et al. 2019) with cross-attention, input and output embeddings tied."""

    depth: Count = Field(2, description="Layers, each of self-attention, cross-attention and MLP.")
    embed_dim: Count = Field(128, description="Width of a token.")
    num_heads: Count = Field(4, description="Heads of every attention; they divide embed_dim.")
    mlp_ratio: Annotated[float, Field(gt=0.0, le=64.0)] = Field(4.0, description="Width of the hidden layer of each MLP over embed_dim.")
    drop_rate: Fraction = Field(0.1, description="Dropout of embeddings, attention and layers in training.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads divides embed_dim; got {self.num_heads} heads of {self.embed_dim}")
        return self


class TokenizerSection(Section):
    """What cuts a caption into tokens. Vocabularies of our own come from the captions of the training split alone."""

    name: Literal["words", "word_pieces", "transformers"] = Field(
        "words", description="words: one token a word; word_pieces: WordPiece (Schuster and Nakajima 2012) learned from the training captions; transformers: "
        "the tokeniser of `source`, or the model's own."
    )  # fmt: skip
    size: Count = Field(8000, description="words, word_pieces: most tokens, the commonest.")
    min_count: Count = Field(1, description="words: how often a word stands in the training captions at least; rarer ones are unknown.")
    source: str | None = Field(None, description="transformers: folder or name on the hub, e.g. bert-base-uncased; default: the model's own.")

    @model_validator(mode="after")
    def _fits_name(self) -> Self:
        if self.source is not None and self.name != "transformers":
            raise ValueError(f"source belongs to name: transformers, not to {self.name}")
        if self.min_count != 1 and self.name != "words":
            raise ValueError(f"min_count belongs to name: words, not to {self.name}")
        return self


class TextSection(Section):
    """How captions become tokens and which of them an epoch learns."""

    tokenizer: TokenizerSection = Field(default_factory=lambda: TokenizerSection.model_validate({}), description="What cuts captions into tokens.")
    max_length: Annotated[int, Field(ge=2, le=MOST_TOKENS)] = Field(
        40, description="Most tokens of a caption, its end among them; longer ones are cut when learned, and end there when found."
    )
    captions: Literal["all", "one"] = Field(
        "all", description="Of several captions of a picture an epoch learns all, the picture encoded once, or one that is drawn anew each epoch."
    )


class GenerationSection(Section):
    """How a caption is found: the settings of transformers' generate()."""

    num_beams: Annotated[int, Field(ge=1, le=64)] = Field(1, description="1: greedy, the likeliest token each time; more: beam search.")
    length_penalty: Annotated[float, Field(ge=-10.0, le=10.0)] = Field(
        1.0, description="Beams: log probability over length to this power; above 0 favours longer."
    )
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=64)] = Field(0, description="No run of so many tokens occurs twice; 0: any may.")
    min_length: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = Field(0, description="Fewest tokens before the end.")

    @model_validator(mode="after")
    def _penalty_needs_beams(self) -> Self:
        if self.length_penalty != 1.0 and self.num_beams == 1:
            raise ValueError(f"length_penalty {self.length_penalty:g} compares beams, and num_beams is 1; give more beams")
        return self


class WordsSection(Section):
    """Where the decoder looked for each word: cross-attention of the step that gave it."""

    layers: Literal["mean", "last"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        "mean", description="Decoder layers of a map: mean of all, the last, or the mean of these, counted from 0. Scores are given for every layer besides."
    )
    heads: Literal["mean"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        "mean", description="Heads of a map: mean of all, or of these, counted from 0."
    )
    pieces: Literal["mean", "sum"] = Field("mean", description="How the maps of a word's pieces become one.")
    drawn: Annotated[int, Field(ge=0, le=200)] = Field(12, description="Pictures of the split whose words are drawn: evenly over it.")
    scored: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        5000, description="Most pictures of the split whose words are measured, where the data says where things are; all of a smaller split."
    )
    images: list[str] = Field([], description="Photographs whose words are drawn too.")
