"""A toy of the public release: a random base model, four random PEFT adapters,
prompts of its own.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coevolve import ProbabilityEstimator
from coevolve.data.corpus import Corpus
from coevolve.data.example import Example, Turn
from coevolve.reference.importing import import_reference
from coevolve.scoring.models import load_model
from coevolve.worlds.tiny import tiny_model

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As reasoning models' templates do: thoughts are taken out of answers, and an empty one opens the
# answer to come.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{{ "
    "message['content'].split('</think>')[-1] }}{% else %}{{ message['content'] }}{% endif "
    "%}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif "
    "%}{% endif %}"
)
TEMPLATES = '''
"""Prompts."""

system_prompt_for_SThought = """Say what a good answer needs."""
base_prompt_for_SThought = """
# Task {{no field}}
User: {user_persona}
Agent: {agent_character}
Talk:
{str_dialogue_context}
Answer given: {agent_golden_response}
"""

system_prompt_for_model_pxy: str = "Answer."
base_prompt_for_model_pxy = (
    "User: {user_persona}\\nAgent: {agent_character}\\n"
    "Talk:\\n{str_dialogue_context}\\n\\n"
)

raise SystemExit("this file is never run")
'''
# The two SFT adapters are on all linear layers, the two of RL on some, of another rank and scale.
SFT = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
GRPO = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True}
NAME = "Toy-1B"


def byte_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, so that any text can be written and read back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<think>", "</think>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


def write_base(folder: Path, seed: int) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, seed=seed, hidden=32, layers=2, heads=2, positions=8192).save_pretrained(
        folder
    )
    return str(folder)


def write_random_adapter(base: str, folder: Path, options: dict, seed: int) -> None:
    """A PEFT directory, written by PEFT."""
    torch.manual_seed(seed)
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def adapter_folders(checkout: Path, number: int) -> dict[str, tuple[Path, Path]]:
    """(SFT, RL) of each role, their names written out."""
    training = checkout / "estimator_training"
    sft, grpo = training / "ckpt_SFT", training / "ckpt_GRPO_CoEvolve"
    return {
        "connector": (
            sft / f"METHOD[thought_completion]-BASED[{NAME}]#ProbLLM",
            grpo / f"PolicyType[thought_policy]-ITER[{number}]-BASED[{NAME}]#ProbLLM",
        ),
        "estimator": (
            sft / f"METHOD[RLMid_SFT_model_pxy]-BASED[{NAME}]#ProbLLM",
            grpo / f"PolicyType[pxy_policy]-ITER[{number}]-BASED[{NAME}]#ProbLLM",
        ),
    }


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """Two rounds of RL beside SFT, an adapter that the evaluation does not use,
    and what made them.
    """
    base = write_base(tmp_path_factory.mktemp("base") / "toy", seed=0)
    checkout = tmp_path_factory.mktemp("release")
    (checkout / "templates.py").write_text(TEMPLATES)
    seed = 1
    for number in (1, 2):
        for folders in adapter_folders(checkout, number).values():
            for folder, options in zip(folders, (SFT, GRPO), strict=True):
                if not folder.exists():
                    write_random_adapter(base, folder, options, seed := seed + 1)
    (
        checkout / "estimator_training" / "ckpt_SFT" / f"METHOD[model_pxy]-BASED[{NAME}]#ProbLLM"
    ).mkdir()
    return SimpleNamespace(
        checkout=checkout,
        base=base,
        name=NAME,
        folders=adapter_folders,
        write_base=write_base,
        write_adapter=write_random_adapter,
    )


@pytest.fixture
def copied(release, tmp_path) -> Path:
    """A copy of the checkout, to be damaged."""
    return shutil.copytree(release.checkout, tmp_path / "checkout")


@pytest.fixture(scope="session")
def thinking_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(THINKING)


@pytest.fixture(scope="session")
def imported(release, tmp_path_factory) -> Path:
    """The release as an estimator directory."""
    folder = tmp_path_factory.mktemp("imported") / "estimator"
    import_reference(release.checkout, release.base, folder, max_new_tokens=24)
    return folder


@pytest.fixture(scope="session")
def estimator(imported) -> ProbabilityEstimator:
    return ProbabilityEstimator.from_pretrained(imported, device="cpu")


def make_example(index: int, subset: str) -> Example:
    turns = [
        ("user", f"Hi {index}!"),
        ("agent", "Ahoy."),
        ("user", f"{'What now? ' * (index % 3 + 1)}"),
    ]
    return Example(
        sample_id=f"{subset}-{index}",
        subset=subset,
        user_persona=f"I have {index} dogs.",
        agent_character={"name": "Ann", "jobs": ["sailor", index]} if index % 2 else "A sailor.",
        dialogue=tuple(Turn(*turn) for turn in turns[-(2 * (index % 2) + 1) :]),
        golden_response=f"{'Fair ' * (index % 4)}winds, {subset}.",
    )


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Subsets whose order in the corpus is not the published one."""

    def examples(subset, count):
        return tuple(make_example(index, subset) for index in range(count))

    splits = {
        "IDTest": examples("IDTest", 4),
        "OOD1Test": (*examples("klingon", 2), *examples("spanish", 3), *examples("german", 3)),
        "OOD3Test": examples("TurnLevelComposition", 3),
    }
    return Corpus(splits, "by hand")
