"""`study.yaml`: a base recipe, the settings that are compared, their seeds, and what is trained once for several of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from pellucid.schema.section import Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$"  # of a folder, and what stands before the colon of -s NAME:KEY=VALUE
MOST_SEEDS = 1000

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=NAME)]


class SharedSection(Section):
    """A run that settings have in common: trained once, by its own recipe and under its own seed."""

    recipe: str = Field(description="Its recipe, relative to the study file.")
    set: dict[str, Any] = Field(default_factory=dict, description="Keys of that recipe (a.b.c) and their values here.")


class SettingSection(Section):
    """A row of the table: what it has another way than the base recipe."""

    label: str = Field("", description="What the table calls it besides its name.")
    set: dict[str, Any] = Field(default_factory=dict, description="Keys of the recipe (a.b.c) and their values here; relative paths start at the study file.")
    from_: dict[str, str] = Field(
        default_factory=dict, alias="from", description="{model.weights: NAME}: this key of the recipe is the file with what the shared run NAME has learned."
    )


class Study(Section):
    """Everything that decides a study."""

    recipe: str = Field(description="The base recipe, relative to the study file.")
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] | Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS)] = Field(
        1, description="A list, or a number n: n consecutive seeds from the recipe's own. Each setting is trained under each."
    )
    measure: str | None = Field(None, description="split/name of the number that the table reports; default: the headline of the first run.")
    baseline: str | None = Field(None, description="The setting that differences refer to; default: the first.")
    final: str | None = Field(None, description="The setting that is marked as the final one.")
    shared: dict[Name, SharedSection] = Field(default_factory=dict, description="Runs that settings build on, by name.")
    settings: Annotated[dict[Name, SettingSection], Field(min_length=1)] = Field(description="The rows of the table, by name.")

    @field_validator("settings", mode="before")
    @classmethod
    def _empty_settings(cls, settings: Any) -> Any:
        """A setting that is a name alone is the base recipe as it stands."""
        return {name: {} if setting is None else setting for name, setting in settings.items()} if isinstance(settings, dict) else settings
