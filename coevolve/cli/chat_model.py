"""What the commands that ask a chat model have in common: which model, and how it is asked."""

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import adders

if TYPE_CHECKING:
    from coevolve.chat import ChatModel

# Which options belong to which kind of model; another kind refuses them, as it could only ignore
# them.
OPTIONS_OF_KIND = {
    "local": ("adapter", "batch_size", "device", "dtype"),
    "vllm": ("adapter", "batch_size", "dtype", "tensor_parallel_size", "max_model_len"),
    "endpoint": ("api_key_env", "concurrency", "timeout", "retries", "rate_limit", "extra"),
}


def add_chat_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    add, reads, _ = adders(parser)
    one, *_ = adders(parser.add_mutually_exclusive_group())
    what = "a folder or hub id; with --endpoint, the name that the server knows"
    reads("--model", what, required=required, metavar="MODEL")
    one("--endpoint", "an OpenAI-compatible server: http://localhost:8000/v1", metavar="URL")
    one("--vllm", "run the model with vLLM instead of transformers", action="store_true")
    add("--temperature", "0 (default) is greedy", type=float, default=0.0)
    add("--seed", "of sampling (default 0; an endpoint is sent none)", type=int)
    add("--max-new-tokens", "of one answer (default 512)", type=int, default=512)
    reads("--adapter", "local, vLLM: a PEFT adapter to put on the model", metavar="DIR")
    add("--batch-size", "local, vLLM: prompts at a time (default 8, 256)", type=int)
    add("--device", "local: auto (default), cpu, cuda, cuda:1, ...")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", "local, vLLM (default bfloat16, on a CPU float32)", choices=dtypes)
    add("--tensor-parallel-size", "vLLM: over so many GPUs (default 1)", type=int, metavar="N")
    add("--max-model-len", "vLLM: tokens of prompt and answer (default the model's)", type=int)
    add("--api-key-env", "endpoint: environment variable that holds the key", metavar="VAR")
    add("--concurrency", "endpoint: requests under way at a time (default 8)", type=int)
    add("--timeout", "endpoint: of one request (default 60)", type=float, metavar="SECONDS")
    add("--retries", "endpoint: times that a failed request is sent again (default 5)", type=int)
    add("--rate-limit", "endpoint: requests a minute at most", type=float, metavar="PER_MINUTE")
    what = (
        "endpoint: fields added to each request, null takes one out; they are written into the "
        'file. For example \'{"top_p": 0.9, "chat_template_kwargs": {"enable_thinking": false}}\''
    )
    add("--extra", what, metavar="JSON")


def load_chat(
    options: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    ledger: str,
    attempts: int = 1,
    patience: int = 1,
) -> "ChatModel":
    """The model that the options of `add_chat_arguments` name.

    `environ` is where an endpoint's key is looked up. A chat template that shows the date goes on
    with the one on which the `ledger` of the answers was begun.
    """
    kind = "endpoint" if options.endpoint else "vllm" if options.vllm else "local"
    given = _given(options, kind)
    if kind == "endpoint":
        from coevolve.chat.endpoint import Endpoint

        if "extra" in given:
            given["extra"] = _json_object(given["extra"])
        return Endpoint(
            options.endpoint,
            options.model,
            environ=environ,
            temperature=options.temperature,
            seed=options.seed,
            max_tokens=options.max_new_tokens,
            attempts=attempts,
            patience=patience,
            **given,
        )
    from coevolve.progress import quieten_libraries
    from coevolve.prompts import prompt_set

    quieten_libraries()
    how: dict[str, Any] = {"temperature": options.temperature, "seed": options.seed or 0}
    how |= {"max_new_tokens": options.max_new_tokens, "date": _date_of(ledger)}
    how |= {"attempts": attempts}
    if kind == "vllm":
        from coevolve.chat.vllm import VllmChat

        return VllmChat.load(options.model, prompt_set("roleplay"), **how, **given)
    from coevolve.chat.local import LocalChat
    from coevolve.scoring.models import choose_device

    on_cpu = choose_device(options.device or "auto").type == "cpu"
    given.setdefault("dtype", "float32" if on_cpu else "bfloat16")
    return LocalChat.load(options.model, prompt_set("roleplay"), **how, **given)


def _given(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The options of one kind of model alone that the user gave."""
    from coevolve.errors import RecipeError

    names = dict.fromkeys(name for names in OPTIONS_OF_KIND.values() for name in names)
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    for name in given:
        if name not in OPTIONS_OF_KIND[kind]:
            kinds = " and ".join(other for other, names in OPTIONS_OF_KIND.items() if name in names)
            raise RecipeError(
                f"--{name.replace('_', '-')}: of no use with this model, which is {kind}; it is "
                f"for {kinds}."
            )
    return given


def _date_of(ledger: str) -> str | None:
    from coevolve.errors import DataError
    from coevolve.files import read_jsonl

    try:
        header = next(read_jsonl(ledger), (1, None))[1]
    except (OSError, DataError):
        return None  # there is none, or whoever opens it will say what is wrong with it
    made_by = header.values() if isinstance(header, Mapping) else ()
    return next((x.get("template_date") for x in made_by if isinstance(x, Mapping)), None)


def _json_object(text: str) -> dict[str, Any]:
    from coevolve.errors import RecipeError
    from coevolve.files import decode_json

    try:
        value = decode_json(text, "--extra")
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"--extra: found {text!r}, which is not JSON ({error.msg}); accepted is an object."
        ) from None
    if not isinstance(value, dict):
        raise RecipeError(f"--extra: found {text!r}; accepted is a JSON object.")
    return value
