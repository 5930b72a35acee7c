"""What a manifest says of how ids are made is enough to make them: here it is done a second time,
with the tokenizers library and Jinja alone, by the words of `coevolve.prompts.rendering`.
"""

import dataclasses
import datetime
import importlib.util
import json
import re
from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from coevolve.prompts import Renderer, prompt_set
from coevolve.scoring.artifact import rendering_entry
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR
from coevolve.scoring.vector import _built_in

spec = importlib.util.spec_from_file_location("kinds", Path(__file__).parent / "test_template.py")
kinds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kinds)


class Elsewhere:
    """Ids of a manifest, a tokenizer.json and a chat template."""

    def __init__(self, manifest, tokenizer_json, template, special):
        self.prompts, self.rendering = manifest["prompts"], manifest["rendering"]
        self.date, self.special = manifest.get("template_date"), special
        self.control, self.plain = (Tokenizer.from_str(tokenizer_json) for _ in range(2))
        self.plain.encode_special_tokens = True
        self.added = json.loads(tokenizer_json)["added_tokens"]
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        jinja.globals["raise_exception"] = self.refuse
        jinja.globals["strftime_now"] = lambda code: datetime.date.fromisoformat(
            self.date
        ).strftime(code)
        self.template = jinja.from_string(template)
        anywhere = {token["content"] for token in self.added} | set(self.prompts["sections"])
        anywhere = [x for x in sorted(anywhere, key=len, reverse=True) if len(x) > 1 and x.strip()]
        labels = [rf"^[^\S\n]*(?:{label})" for label in self.prompts["labels"]]
        self.harmful = re.compile("|".join([*map(re.escape, anywhere), *labels]), re.MULTILINE)

    def refuse(self, text):
        raise jinja2.TemplateError(text)

    def harmless(self, text):
        return self.harmful.sub(lambda match: match[0][:1] + "\u2060" + match[0][1:], text)

    def value(self, value):
        if isinstance(value, dict):
            return "; ".join(f"{name}: {self.value(item)}" for name, item in value.items())
        if isinstance(value, list):
            return "; ".join(map(self.value, value))
        return str(value)

    def character(self, value):
        if isinstance(value, str) or self.prompts["convention"] == "reference":
            return str(value)
        return "\n".join(f"{name}: {self.value(item)}" for name, item in value.items())

    def fields(self, row):
        turns, k = [], 1
        for place, turn in enumerate(row["dialogue_context"]):
            ((speaker, text),) = turn.items()
            k += place > 0 and speaker == "user_query"
            name = "user_turn" if speaker == "user_query" else "agent_turn"
            turns.append(self.prompts[name].format(k=k, text=self.harmless(text)))
        turns += [self.prompts["next_turn"].format(k=k)] if self.prompts["next_turn"] else []
        between = self.prompts["turn_separator"]
        fields = {
            "user_persona": self.harmless(row["user_persona"]),
            "agent_character": self.harmless(self.character(row["agent_character"])),
            "dialogue": between.join(turns),
            "last_exchange": between.join(turns[-2 if self.prompts["next_turn"] else -1 :]),
        }
        return {**fields, "context": self.prompts["context"].format(**fields)}

    def features(self, reasoning):
        *others, heading = self.prompts["sections"]
        _, found, text = reasoning.rpartition(heading)
        if self.prompts["convention"] == "reference":
            return self.harmless(text.replace("```", ""))
        text = text[: min([text.index(x) for x in others if x in text], default=len(text))]
        lines = [line for line in text.split("\n") if not line.strip().startswith("```")]
        text = "\n".join(lines).strip().strip("`").strip()
        return self.harmless(text) if found and text else self.prompts["no_features"]

    def prompt(self, role, template, row, **more):
        how = self.rendering["roles"][role]
        system = self.prompts[f"{role}_system"]
        user = self.prompts[template].format(**self.fields(row), **more)
        if system and how["system_in_user"]:
            system, user = "", f"{system}\n\n{user}"
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        text = self.template.render(
            messages=messages, add_generation_prompt=True, enable_thinking=False, **self.special
        )
        assert text.endswith(how["instead_of"])
        text = text[: len(text) - len(how["instead_of"])] + how["opening"]
        start = self.prompts["response_start"] if role == ESTIMATOR else ""
        text = text + start if start else text.removesuffix(how["space"])
        return self.control.encode(text, add_special_tokens=False).ids

    def behind(self, before, head, text):
        ids = self.plain.encode(before + text, add_special_tokens=False).ids
        if ids[: len(head)] == head:
            return ids[len(head) :]
        return self.plain.encode(text, add_special_tokens=False).ids

    def answer(self, role, text):
        how = self.rendering["roles"][role]
        ordinary = [re.escape(token["content"]) for token in self.added if not token["special"]]
        feed = self.control.encode("\n", add_special_tokens=False).ids
        ids, before, head = [], how["behind"], how["cut_off"]
        while ordinary and (found := re.search("|".join(ordinary), text)):
            ids += self.behind(before, head, text[: found.start() + 1])
            text, before, head = text[found.start() + 1 :], "\n", feed
        return ids + self.behind(before, head, text) + how["closing_ids"]


SETS = {
    "roleplay": prompt_set("roleplay"),
    "brief-0.3": prompt_set("brief-0.3"),
    "as published": dataclasses.replace(prompt_set("brief"), convention="reference"),
}


@pytest.mark.parametrize("prompts", SETS.values(), ids=SETS)
@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_second_implementation_has_the_same_ids(name, prompts):
    kind = kinds.KINDS[name]
    if name == "ChatML":
        prompts = dataclasses.replace(prompts, response_start="## Agent Response\n")
    tokenizer = TOKENIZERS.setdefault(kind.tokenizer, kinds.tokenizer_of(kind.tokenizer))
    tokenizer.chat_template = kind.template
    render = Renderer(prompts, tokenizer, date="2026-01-31")
    manifest = {
        "prompts": json.loads(json.dumps(prompts.to_dict())),
        "rendering": rendering_entry({CONNECTOR: render, ESTIMATOR: render}),
        **render.shown_date,
    }
    special = tokenizer.special_tokens_map
    other = Elsewhere(manifest, tokenizer.backend_tokenizer.to_str(), kind.template, special)
    for example in _built_in(prompts.sections):
        row = example.to_row()
        reasonings = [example.trace, "", f"{example.trace}\n```x\n `a`<think>```\n", "no heading"]
        expected = render.prompt_ids(render.connector(example))
        assert other.prompt(CONNECTOR, "connector_user", row) == expected
        for reasoning in reasonings:
            expected = render.prompt_ids(render.estimator(example, reasoning))
            features = other.features(reasoning)
            assert other.prompt(ESTIMATOR, "estimator_user", row, features=features) == expected
        expected = render.prompt_ids(render.estimator(example, None))
        assert other.prompt(ESTIMATOR, "direct_user", row) == expected
        for text in (example.golden_response, "a <think> b</think><tool_call>", "\u597d"):
            assert other.answer(ESTIMATOR, text) == render.response_ids(text)


TOKENIZERS = {}
