"""The probability estimator: q1 writes a reasoning, q2 gives the probability of a response."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from coevolve.data.example import Example
from coevolve.errors import ArtifactError, TooLongError
from coevolve.prompts import Renderer
from coevolve.scoring.artifact import form_of, read_manifest, read_prompts
from coevolve.scoring.batching import TOKEN_BUDGET, Ids, max_positions
from coevolve.scoring.cache import Found, WorkCache, cached_scores, cached_texts, fingerprint_of
from coevolve.scoring.generate import Generation, Sampling, generate
from coevolve.scoring.loading import load_renderers, load_roles
from coevolve.scoring.logprob import score_pairs, to_scores
from coevolve.scoring.models import choose_device
from coevolve.scoring.publish import located, pack, push
from coevolve.scoring.reasoning import Reasoning, combine, combine_tokens
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role, Roles
from coevolve.scoring.scores import Scores
from coevolve.scoring.ways import ways_of

logger = logging.getLogger(__name__)

Examples = Sequence[Example]
Texts = Sequence[str]
Written = Sequence[str | None]
Pairs = np.ndarray
Tick = Callable[[int], None] | None
"""Told how many more are done."""
Shown = Reasoning | Sequence[str | None] | None
"""A form; or one reasoning, or None, for each example; or None: the estimator's own form."""


class ProbabilityEstimator:
    """p(response | user persona, character, dialogue), of q1(r | x) and q2(y | x, r) by a form.

    Usually made by `from_pretrained`; training makes one around its resident models.

    Args:
        connector_renderer: with the connector's tokenizer, where that is another one.
        max_new_tokens: room for a reasoning.
        no_repeat_ngram: of a greedy one, as for `generate`.
        token_budget: tokens of one forward pass.
        manifest: what the export said of itself; empty during training.
        poll: called between any two forward passes; what it raises ends the work under way.

    Attributes:
        form: by which it scores unless told otherwise.
        caches: what each role computed before, on disk; empty unless `use_cache` was called.
    """

    def __init__(
        self,
        roles: Roles,
        renderer: Renderer,
        *,
        max_new_tokens: int,
        no_repeat_ngram: int = 0,
        connector_renderer: Renderer | None = None,
        token_budget: int = TOKEN_BUDGET,
        manifest: dict[str, Any] | None = None,
        poll: Callable[[], None] | None = None,
    ):
        self.roles, self.renderer = roles, renderer
        self.connector_renderer = renderer if connector_renderer is None else connector_renderer
        self.max_new_tokens, self.no_repeat_ngram = max_new_tokens, no_repeat_ngram
        self.token_budget, self.poll = token_budget, poll
        self.manifest = manifest or {}
        self.form = form_of(self.manifest)
        self.caches: dict[Role, WorkCache] = {}
        self.writer: Callable[..., list[Generation]] = generate

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        base: str | Mapping[Role, str] | None = None,
        quantization: Literal["as trained", "none", "4bit", "8bit"] = "as trained",
        token_budget: int = TOKEN_BUDGET,
        verify: bool = True,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> "ProbabilityEstimator":
        """Load an exported estimator; ArtifactError where it, or its base model, is not what it
        was.

        Args:
            path: a directory, or the name of one on a hub, of which `revision` is a branch, tag or
                commit.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
            dtype: `float32`, `bfloat16` or `float16`.
            base: where to take the base model from, if not from where the manifest says; for each
                role, if they have different ones.
            quantization: how the base under adapters is held; `8bit` halves its memory and `4bit`
                quarters it. Scores are those of training only as it was trained.
            verify: check the SHA-256 of every file, the base model's too.
        """
        path, trust = located(path, revision), {"trust_remote_code": trust_remote_code}
        manifest = read_manifest(path, verify=verify)
        entries, date = manifest["roles"], manifest.get("template_date")
        # Before the models: it is cheap.
        renderers = load_renderers(path, entries, read_prompts(manifest, path), date=date, **trust)
        bases = dict.fromkeys(ROLES, base) if isinstance(base, str) else base or {}
        options: dict[str, Any] = {"dtype": dtype, "device": choose_device(device), **trust}
        checks: dict[str, Any] = {"quantization": quantization, "verify": verify}
        roles = load_roles(path, entries, bases=bases, **checks, **options)
        estimator = cls(
            roles,
            renderers[ESTIMATOR],
            connector_renderer=renderers[CONNECTOR],
            max_new_tokens=manifest["reasoning"]["max_new_tokens"],
            no_repeat_ngram=manifest["reasoning"].get("no_repeat_ngram") or 0,
            token_budget=token_budget,
            manifest=manifest,
        )
        estimator._verified, estimator._folder = verify, path
        return estimator

    _verified = False
    _folder: Path | None = None

    def push_to_hub(self, repo: str, *, private: bool = False, revision: str | None = None) -> str:
        """Put the directory that it was loaded from into the hub's model repository `repo`, as
        `coevolve push` does; the commit's address.
        """
        if self._folder is None:
            raise ArtifactError("Only an estimator that from_pretrained loaded is in a directory.")
        return push(pack(self._folder), repo, private=private, revision=revision)

    def use_cache(self, folder: str | Path) -> None:
        """From now on, keep reasonings and scores in `folder`, and take those that are there.

        They are found by content: the role's weights and base model by their SHA-256, precision,
        kind of device, and the ids of prompt and response. Weights that are changed afterwards are
        not noticed. ArtifactError unless `from_pretrained` verified the files.
        """
        if not self._verified:
            raise ArtifactError("A cache needs an estimator from from_pretrained(verify=True).")
        for role in ROLES:
            name = fingerprint_of(self.manifest, role, self.roles.module(role).parameters())
            self.caches[role] = WorkCache(folder, name)

    def reason(
        self,
        examples: Examples,
        *,
        seed: int | None = None,
        temperature: float = 1.0,
        progress: Tick = None,
    ) -> list[str]:
        """One reasoning r for each example; the response is not looked at.

        Without a seed it is greedy. With one, a sample that depends on it and on each example's
        sample_ID only, up to rounding of the logits.
        """
        generations = self._generate(examples, seed, temperature, progress)
        cut = sum(not generation.finished for generation in generations)
        if cut:
            room, asked = self.max_new_tokens, len(examples)
            logger.warning("%d of %d reasonings reached max_new_tokens=%d.", cut, asked, room)
        return [self.connector_renderer.decode(generation.ids) for generation in generations]

    def _generate(
        self, examples: Examples, seed: int | None, temperature: float, progress: Tick
    ) -> list[Generation]:
        render = self.connector_renderer
        prompts = [render.prompt_ids(render.connector(example)) for example in examples]
        self._require_room(CONNECTOR, examples, prompts, self.max_new_tokens, "a reasoning")
        keys, stops = [_key(example.sample_id) for example in examples], self.stop_ids(CONNECTOR)
        sampling = None if seed is None else Sampling(seed, temperature)
        guard = self.no_repeat_ngram if seed is None else 0  # a sample is one of q1, and stays it

        def write(places: Sequence[int], keep: Found | None = None) -> list[Generation]:
            def found(rows: Sequence[int], written: Sequence[Generation]) -> None:
                if keep is not None:
                    keep(rows, [(generation.ids, generation.finished) for generation in written])

            with self.roles.acting(CONNECTOR) as model:
                return self.writer(
                    model,
                    [prompts[place] for place in places],
                    max_new_tokens=self.max_new_tokens,
                    stop_ids=stops,
                    pad_id=render.tokenizer.pad_token_id,
                    sampling=sampling,
                    keys=[keys[place] for place in places],
                    no_repeat_ngram=guard,
                    token_budget=self.token_budget,
                    progress=progress,
                    found=found,
                    poll=self.poll,
                )

        if CONNECTOR not in self.caches:
            return write(range(len(examples)))
        fixed = {"length": self.max_new_tokens, "stop": stops}
        fixed |= {"no_repeat_ngram": guard} if guard else {}
        drawn = {} if seed is None else {"seed": seed, "temperature": temperature}
        texts = cached_texts(
            self.caches[CONNECTOR],
            prompts,
            [fixed | (drawn and {**drawn, "key": key}) for key in keys],
            write,
            progress,
        )
        return [Generation(ids, finished) for ids, finished in texts]

    def log_prob(
        self,
        examples: Examples,
        responses: Texts,
        reasoning: Shown = None,
        *,
        progress: Tick = None,
    ) -> Scores:
        """log p(y_i | x_i), shape (N,): sums in nats per response, and each one's number of tokens.

        By the estimator's own form, by another, or log q2(y_i | x_i, r_i) with the reasonings
        given; one of None scores q2(y | x), with the prompt of that question. Raises TooLongError,
        naming the example, where one does not fit the model.
        """
        own = _own(examples, responses)
        return self.log_prob_pairs(examples, responses, reasoning, own, progress=progress)

    def token_log_probs(
        self,
        examples: Examples,
        responses: Texts,
        reasoning: Shown = None,
        *,
        progress: Tick = None,
    ) -> list[np.ndarray]:
        """As `log_prob`, but each response's tokens apart: N float64 arrays in nats."""
        own = _own(examples, responses)
        return self.token_log_prob_pairs(examples, responses, reasoning, own, progress=progress)

    def log_prob_pairs(
        self,
        examples: Examples,
        responses: Texts,
        reasoning: Shown,
        pairs: Pairs,
        *,
        progress: Tick = None,
    ) -> Scores:
        """log p(y_j | x_i) for each row (i, j) of `pairs` (Q, 2): (Q,); contexts computed once."""
        weights, written = self._written(examples, reasoning, progress)
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        scored = [self._sums(examples, responses, r, pairs, progress) for r in written]
        return combine(weights, scored)

    def token_log_prob_pairs(
        self,
        examples: Examples,
        responses: Texts,
        reasoning: Shown,
        pairs: Pairs,
        *,
        progress: Tick = None,
    ) -> list[np.ndarray]:
        """As `log_prob_pairs`, but each response's tokens apart: Q float64 arrays in nats."""
        weights, written = self._written(examples, reasoning, progress)
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        scored = [self._token_log_probs(examples, responses, r, pairs, progress) for r in written]
        return combine_tokens(weights, scored)

    def log_prob_matrix(
        self,
        examples: Examples,
        responses: Texts,
        reasoning: Shown = None,
        *,
        progress: Tick = None,
    ) -> Scores:
        """log p(y_j | x_i) for every context i and response j: sum (N, M) in nats, tokens (M,)."""
        shape = len(examples), len(responses)
        pairs = np.indices(shape).reshape(2, -1).T
        scores = self.log_prob_pairs(examples, responses, reasoning, pairs, progress=progress)
        tokens = np.array([len(target) for target in self._targets(responses)])
        return Scores(scores.sum.reshape(shape), tokens)

    def log_prob_marginal(
        self,
        examples: Examples,
        responses: Texts,
        *,
        samples: int,
        seed: int,
        progress: Tick = None,
    ) -> Scores:
        """log mean_k q2(y_i | x_i, r_ik) over reasonings drawn from q1(r | x_i): shape (N,), nats.

        A lower bound, in expectation, of log q(y | x) with r summed out, tight as `samples` grows
        (Burda et al., Importance Weighted Autoencoders, ICLR 2016).
        """
        form = Reasoning("marginal", samples, seed)
        return self.log_prob(examples, responses, form, progress=progress)

    def to(self, device: str | torch.device) -> "ProbabilityEstimator":
        """Move the models."""
        for role in ROLES:
            self.roles.module(role).to(device)
        return self

    def renderer_of(self, role: Role) -> Renderer:
        """The prompts with the role's own tokenizer."""
        return self.connector_renderer if role == CONNECTOR else self.renderer

    def stop_ids(self, role: Role) -> list[int]:
        """What ends a text of the role: its template's end of turn, and its generation config's."""
        with self.roles.acting(role) as model:
            return self.renderer_of(role).stop_ids(model)

    @property
    def scoring_ways(self) -> dict[Role, dict[str, str]]:
        """How each role's model is run, as its self-check found (`Ways.as_dict`)."""
        found = {}
        for role in ROLES:
            with self.roles.acting(role) as model:
                found[role] = ways_of(model).as_dict()
        return found

    def _written(
        self, examples: Examples, reasoning: Shown, progress: Tick
    ) -> tuple[Sequence[float], Sequence[Written]]:
        """The parts of a form: their weights, and for each a reasoning per example."""
        form = self.form if reasoning is None else reasoning
        if isinstance(form, Reasoning):
            return form.weights, form.write(self, examples, progress)
        if len(examples) != len(form):
            raise ValueError(f"{len(examples)} examples and {len(form)} reasonings: give as many.")
        return [1.0], [form]

    def _sums(
        self, examples: Examples, responses: Texts, written: Written, pairs: Pairs, progress: Tick
    ) -> Scores:
        return to_scores(self._token_log_probs(examples, responses, written, pairs, progress))

    def _token_log_probs(
        self, examples: Examples, responses: Texts, written: Written, pairs: Pairs, progress: Tick
    ) -> list[np.ndarray]:
        """log q2(y_j,t | x_i, r_i, y_j,<t) of each pair."""
        shown = map(self.renderer.estimator, examples, written)
        prompts = [self.renderer.prompt_ids(prompt) for prompt in shown]
        targets = self._targets(responses)
        if len(pairs):
            # The longest speaks for all of them.
            sizes = [len(prompts[i]) + len(targets[j]) for i, j in pairs]
            i, j = pairs[int(np.argmax(sizes))]
            room = len(targets[j])
            self._require_room(ESTIMATOR, [examples[i]], [prompts[i]], room, "its response")
        options: dict[str, Any] = {
            "pad_id": self.renderer.tokenizer.pad_token_id,
            "token_budget": self.token_budget,
            "progress": progress,
            "poll": self.poll,
        }

        def compute(some: np.ndarray, **more: Any) -> list[np.ndarray]:
            with self.roles.acting(ESTIMATOR) as model:
                return score_pairs(model, prompts, targets, some, **options, **more)

        if ESTIMATOR not in self.caches:
            return compute(pairs)
        return cached_scores(self.caches[ESTIMATOR], prompts, targets, pairs, compute, progress)

    def _targets(self, responses: Sequence[str]) -> list[list[int]]:
        for index, response in enumerate(responses):
            if not response.strip():
                raise ValueError(f"responses[{index}] is empty; it needs a visible character.")
        return [self.renderer.response_ids(response) for response in responses]

    def _require_room(
        self, role: Role, examples: Examples, prompts: Sequence[Ids], room: int, what: str
    ) -> None:
        with self.roles.acting(role) as model:
            limit = max_positions(model)
        for example, prompt in zip(examples, prompts, strict=True):
            if len(prompt) + room > limit:
                raise TooLongError(
                    f"sample_ID {example.sample_id!r}: its prompt has {len(prompt)} tokens and "
                    f"{what} needs {room}; the model holds {limit}. Shorten its dialogue or leave "
                    "the example out."
                )


def _own(examples: Examples, responses: Texts) -> Pairs:
    """The pairs of each example and its own response, (N, 2)."""
    if len(examples) != len(responses):
        raise ValueError(f"{len(examples)} examples and {len(responses)} responses: give as many.")
    return np.stack([np.arange(len(examples))] * 2, axis=1)


def _key(sample_id: str) -> int:
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big")
