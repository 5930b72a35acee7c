"""`manifest.json` of an exported estimator, described for whoever reads one.

`coevolve.scoring.artifact` writes and checks it, and does without pydantic, as scoring must run
where only torch, transformers and peft are.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from coevolve.documents import Document, Part
from coevolve.remid.results import ChosenReasoning
from coevolve.training.documents import HeldOut

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BaseOfEntry(Part):
    """The base model of a role."""

    source: str = Field(description="A hub id, or the folder that it was taken from.")
    fingerprint: Sha256 = Field(description="Of its weights.")
    quantization: Literal["4bit", "8bit"] | None = None
    """How it was held in training."""
    folder: str | None = None
    """Beside the manifest; null where it is not included."""
    settings: dict[str, Sha256] | None = None
    """SHA-256 of each file of settings; null where the role was trained whole."""


class RoleEntry(Part):
    """One of the two models."""

    tuning: Literal["lora", "full", "none"]
    """Adapter, all weights, or the base model as it is."""
    base: BaseOfEntry = Field(description="What it stands on.")
    continued_from: dict[str, JsonValue] | None = None
    """The adapter that it began as, if it began as one."""
    tokenizer: str = Field(description="The folder beside the manifest that it is read from.")
    chat_template: str | dict[str, str] = Field(description="Its text, or several by name.")
    fingerprint: Sha256 | None = Field(default=None, description="Of the role's own weights.")


class EstimatorManifest(Document):
    """What an exported estimator is: format, prompts, roles, files."""

    marks: ClassVar = ("format", "version")
    format: Literal["coevolve-estimator"] = Field(description="What the file is.")
    version: Literal[4] = Field(description="Of the format.")
    coevolve: str = Field(description="The version that wrote it.")
    roles: Annotated[dict[Literal["connector", "estimator"], RoleEntry], Field(min_length=2)]
    """The two models."""
    normalisation: str = Field(description="In which units scores are, in words.")
    scoring: dict[str, JsonValue] | None = None
    """Ways of scoring that its self-check chose; absent where none was run."""
    reasoning: dict[str, JsonValue]
    """How reasonings are written: `max_new_tokens`, `no_repeat_ngram` (greedy ones have no so many
    tokens in a row twice; 0 or absent: they may), and words.
    """
    form: ChosenReasoning | None = None
    """By which it scores; absent before version 0.4, and where nothing was trained here: greedy."""
    held_out: dict[str, HeldOut] | None = None
    """Perplexity of golden responses by each form, on the rows that nothing was trained on."""
    prompts: dict[str, JsonValue] = Field(description="The prompt set.")
    rendering: dict[str, JsonValue] = Field(description="How texts and ids are made of examples.")
    license: str | None = None
    """As the recipe gives it."""
    datasets: list[str] | None = None
    """The hub's names of what it was trained on."""
    results: dict[str, JsonValue] | None = None
    """`perplexity` and `ratio` on test splits, as in `results.json`,
    as far as they were measured.
    """
    template_date: str | None = None
    """The day that chat templates which show one show."""
    training: dict[str, JsonValue] | None = None
    """Recipe, seed, checkpoint, and what was measured; absent where nothing was trained here."""
    imported: dict[str, JsonValue] | None = None
    """From which public release; absent otherwise."""
    files: dict[str, Sha256] = Field(
        description="SHA-256 of every other file; README.md may differ."
    )
    identity: Sha256 = Field(description="SHA-256 of the manifest without this field.")
