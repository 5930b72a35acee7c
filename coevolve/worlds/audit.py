"""Every measure beside its exact value: mutual information, EMI and EMID, by every form, on fresh
samples of a world.

The same responses are scored by three conditionals, so that a fault can be told from its cause:

* `estimator`: the one that is audited;
* `ideal`: the world's own p(y | x), the best that training on golden responses can give;
* `own`: each policy's own p_theta(y | x), the best that training on *its* responses could give.

With readers asked for, two more are of those that a user of the measures may have:

* `fitted`: the estimator, trained further on each policy's responses to fresh contexts (`fit`);
* `best`: of the estimator and `fitted`, or `own`, the one with the larger bound, chosen on one half
  of the responses and used on the other (`coevolve.information.readers`), golden ones likewise.

What `own` gets wrong is the form's doing, what `ideal` gets wrong besides is due to reading a
policy by golden responses, and what `estimator` gets wrong besides is the estimator's.

A response has as many tokens as any other, so that per token every number is that per response over
`truth.RESPONSE_TOKENS`, the published form (CLUB per token) included.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coevolve.data.corpus import SHIFT_OF_SPLIT, TRAIN_SPLIT
from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.information.agreement import pearson, spearman
from coevolve.information.contrast import Contrast
from coevolve.information.emi import difference, emid
from coevolve.information.estimate import FORMS, Estimate, mutual_information
from coevolve.information.marginal import bigram_log_probs
from coevolve.information.readers import best_readers, halves, read_by
from coevolve.information.uncertainty import standard_error
from coevolve.remid.score import Estimator, PairScorer, score_pairs
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.scores import Scores
from coevolve.worlds import truth
from coevolve.worlds.corpus import worlds_by_split
from coevolve.worlds.language import SLOTS, Values, parse_all, parse_responses
from coevolve.worlds.policies import Policy
from coevolve.worlds.role_players import OTHER_CODE, role_players
from coevolve.worlds.world import Hops, World

IN_DISTRIBUTION = "IDTest"
GOLDEN = "golden"
BEST = "best"
FITTED = "fitted"
SOURCES = ("estimator", "ideal", "own", FITTED, BEST)
FITTED_TO = 1024
"""Responses of each policy in distribution."""
EXACT_MARGINAL = "exact_marginal"
MEASURES = (*FORMS, EXACT_MARGINAL)
"""The forms, and Barber and Agakov's bound as it stands in theory, with the exact p(y)."""

LEAST_LOSS = 0.1
"""Nats per response from which the sign of an EMID is asked for."""

AUDIT_STREAM = 5  # keeps the fresh samples apart from the splits, drawn from [seed, split]
FIT_STREAM = 6  # likewise, of what readers are fitted to
CONTEXTS_AT_ONCE = 16

Row = dict[str, Any]
Matrices = dict[str, NDArray[np.float64]]
Report = Callable[[int], None]
Fit = Callable[[Sequence[Example], Sequence[str]], PairScorer]
"""From examples and responses to a reader that was fitted to them."""
Write = Callable[[int], list[list[str | None]]]
"""From where a block of contexts begins to their reasonings."""


@dataclass(frozen=True)
class Sample:
    """Fresh examples of one world, and every policy's responses to them, `golden` first."""

    split: str
    world: World
    examples: Sequence[Example]
    responses: Mapping[str, Sequence[str]]


def audit_world(
    estimator: Estimator | None,
    seed: int,
    *,
    strength: float = 1.0,
    hops: Hops = "several",
    test: int = 256,
    names: Sequence[str] | None = None,
    splits: Collection[str] | None = None,
    reasoning: Reasoning | None = None,
    own_readers: bool = False,
    fit: Fit | None = None,
    advance: Report | None = None,
) -> list[Row]:
    """Estimates and exact values for the world of a seed.

    One row per split, policy (`golden` among them), source and measure, nats per response, with the
    fields of `coevolve.worlds.results.TruthRow`; emi is null for `golden`, emid in distribution
    too.

    Args:
        estimator: trained on that world; None to compare the exact conditionals alone.
        test: examples per split, all pairs of which are scored.
        names: of the policies judged; None for all of `coevolve.worlds.role_players`.
        splits: the shifted ones beside that in distribution; None for all.
        reasoning: how the estimator's reasonings are chosen; greedy by default.
        own_readers: whether the best of the estimator and `own` reads, too.
        fit: likewise, with readers that are fitted in the place of `own`.
        advance: told of each context that is scored; there are `test` of each split, and twice as
            many with readers that are fitted.
    """
    if test < 8:
        raise DataError(f"{test} examples per split were asked for; an audit needs 8 or more.")
    worlds = worlds_by_split(seed, strength=strength, hops=hops)
    del worlds[TRAIN_SPLIT]
    policies = chosen_policies(worlds[IN_DISTRIBUTION], names)
    reasoning = reasoning or Reasoning()
    readers = _fitted(fit, seed, worlds[IN_DISTRIBUTION], policies) if fit else {}
    rows: list[Row] = []
    home: dict[tuple[str, str, str], tuple[Row, Estimate | None]] = {}
    for index, (split, world) in enumerate(worlds.items()):
        if splits is not None and split not in (IN_DISTRIBUTION, *splits):
            continue
        rng = np.random.default_rng([seed, AUDIT_STREAM, index])
        sample = _draw(split, world, policies, test, rng)
        if estimator is None and advance is not None:
            advance(test)
        scored = None
        if estimator is not None:
            write = _writer(estimator, reasoning, sample)
            scored = {"estimator": _score(estimator, reasoning, sample, write, advance)}
            if readers:
                scored[FITTED] = _read(readers, reasoning, sample, write, advance)
        halved = halves([example.sample_id for example in sample.examples], seed)
        other = FITTED if readers else "own" if own_readers else None
        chosen = None if scored is None or other is None else (other, halved)
        for row, estimated in _judge(sample, policies, scored, chosen):
            key = (row["policy"], row["source"], row["measure"])
            row = {"seed": seed, **row, "emid": None, "emid_error": None, "exact_emid": None}
            if split == IN_DISTRIBUTION:
                home[key] = row, estimated
            elif estimated is not None:
                row_of_home, estimated_at_home = home[key]
                assert estimated_at_home is not None  # of the same key
                loss = emid(estimated_at_home, estimated)
                exact = row_of_home["exact_emi"] - row["exact_emi"]
                row |= {"emid": loss.value, "emid_error": loss.standard_error, "exact_emid": exact}
            rows.append(row)
    return rows


def chosen_policies(world: World, names: Sequence[str] | None) -> dict[str, Policy]:
    """Those of `role_players` that are asked for, in that order. DataError: an unknown name."""
    known = role_players(world)
    for name in names or ():
        if name not in known:
            raise DataError(f"policy {name!r} is unknown; accepted are {', '.join(known)}.")
    return {name: known[name] for name in names or known}


def information_agreement(rows: Sequence[Row]) -> list[Row]:
    """Golden mutual information by measure and source, means over splits and seeds; `ratio_spread`
    is the ratio's standard deviation over seeds.
    """
    found = []
    for known, chosen in _groups([row for row in rows if row["policy"] == GOLDEN]):
        by_seed = []
        for of_seed in _by_seed(chosen):
            estimate, exact = _columns(of_seed, "information", "exact_information")
            by_seed.append(np.mean(estimate / exact))
        numbers = {
            "estimate": float(np.mean([row["information"] for row in chosen])),
            "exact": float(np.mean([row["exact_information"] for row in chosen])),
            "ratio": float(np.mean(by_seed)),
            "ratio_spread": float(np.std(by_seed)),
        }
        found.append(known | numbers)
    return found


def emi_agreement(rows: Sequence[Row], *, same_code: bool) -> list[Row]:
    """How well EMI in distribution ranks the policies, or those of golden's code, by measure and
    source: means over seeds, `spread` the standard deviation over them, `off` the mean absolute
    error in nats. A correlation is null if there is none.
    """
    there = [x for x in rows if x["split"] == IN_DISTRIBUTION and x["emi"] is not None]
    wanted = [row for row in there if row["same_code"] or not same_code]
    found = []
    for known, chosen in _groups(wanted):
        by_seed = [_columns(of_seed, "exact_emi", "emi") for of_seed in _by_seed(chosen)]
        ranked = [spearman(exact, emi) for exact, emi in by_seed if exact.size > 1]
        linear = [pearson(exact, emi) for exact, emi in by_seed if exact.size > 1]
        mean = _mean_of(ranked)
        numbers = {
            "policies": by_seed[0][0].size,
            "spearman": mean,
            "spearman_spread": None if mean is None else float(np.std(np.array(ranked, float))),
            "pearson": _mean_of(linear),
            "off": float(np.mean([np.abs(exact - emi).mean() for exact, emi in by_seed])),
        }
        found.append(known | numbers)
    return found


def emid_agreement(rows: Sequence[Row], *, same_code: bool, least: float = LEAST_LOSS) -> list[Row]:
    """How well EMID is measured over all policies, shifts and seeds, by measure and source.

    Rows hold the number of EMIDs; how many are over `least` in size; of these the share with the
    right sign; how many of these are estimated 2 standard errors from 0, and the share of them with
    the right sign; correlations; the regression slope of estimates on exact values; the mean
    absolute error in nats. Null where there is nothing to count.
    """
    wanted = [x for x in rows if x["emid"] is not None and (x["same_code"] or not same_code)]
    found = []
    for known, chosen in _groups(wanted):
        exact, estimate, error = _columns(chosen, "exact_emid", "emid", "emid_error")
        large = np.abs(exact) > least
        right = np.sign(exact) == np.sign(estimate)
        sure = large & (np.abs(estimate) > 2 * error)
        varies = exact.size > 1 and np.ptp(exact) > 0
        numbers = {
            "losses": int(exact.size),
            "large": int(large.sum()),
            "right": _share(right[large]),
            "sure": int(sure.sum()),
            "right_when_sure": _share(right[sure]),
            "spearman": spearman(exact, estimate) if varies else None,
            "pearson": pearson(exact, estimate) if varies else None,
            "slope": float(np.polyfit(exact, estimate, 1)[0]) if varies else None,
            "off": float(np.abs(exact - estimate).mean()),
        }
        found.append(known | numbers)
    return found


def exact_matrix(policy: Policy, inputs: Values, words: NDArray[np.int64]) -> NDArray[np.float64]:
    """log p_theta(y_j | x_i), (M, N) nats, of M contexts and responses as words (N, SLOTS)."""
    manner, *features = policy.plan(inputs)
    emissions = np.log(policy.slot_emissions())
    return sum(emissions[slot, manner, features[slot]][:, words[:, slot]] for slot in range(SLOTS))


def _draw(
    split: str,
    world: World,
    policies: Mapping[str, Policy],
    count: int,
    rng: np.random.Generator,
    prefix: str = "audit",
) -> Sample:
    examples = world.sample(
        count, rng, subset=SHIFT_OF_SPLIT[split] or split, prefix=f"{prefix}-{split}"
    )
    responses: dict[str, Any] = {GOLDEN: [example.golden_response for example in examples]}
    responses |= {name: policy.respond(examples, rng) for name, policy in policies.items()}
    return Sample(split, world, examples, responses)


def _judge(
    sample: Sample,
    policies: Mapping[str, Policy],
    scored: Mapping[str, Matrices] | None,
    chosen: tuple[str, NDArray[np.int64]] | None,
) -> Iterator[tuple[Row, Estimate | None]]:
    """A sample's rows, still without EMID, each with its estimate of EMI (golden: None)."""
    golden_policy, inputs = sample.world.golden, parse_all(sample.examples)
    golden: dict[tuple[str, str], Estimate] = {}
    exact_golden = truth.information(sample.world).mutual_information
    for name, responses in sample.responses.items():
        policy = policies.get(name, golden_policy)
        words = parse_responses(sample.examples, responses)
        matrices = {source: of_policy[name] for source, of_policy in (scored or {}).items()}
        for source, one in (("ideal", golden_policy), ("own", policy)):
            matrices[source] = exact_matrix(one, inputs, words)
        exact = truth.information(sample.world, policy).mutual_information
        known = {
            "split": sample.split,
            "shift": SHIFT_OF_SPLIT[sample.split],
            "policy": name,
            "same_code": not name.startswith(OTHER_CODE),
            "exact_information": exact,
            "readable_information": truth.readable_information(sample.world, policy),
            "exact_emi": exact - exact_golden,
        }
        marginals = _marginals(sample.world, policy, responses, words)
        for (source, measure), information in _informations(matrices, marginals, chosen).items():
            row = {**known, "source": source, "measure": measure}
            row["information"] = information.value
            ours = golden.setdefault((source, measure), information)
            emi = None if name == GOLDEN else difference(information, ours)
            row["emi"] = None if emi is None else emi.value
            row["emi_error"] = None if emi is None else standard_error(emi.influence)
            yield row, emi


def _informations(
    matrices: Mapping[str, NDArray[np.float64]],
    marginals: Mapping[str, NDArray[np.float64]],
    other: tuple[str, NDArray[np.int64]] | None,
) -> dict[tuple[str, str], Estimate]:
    """(source, measure) -> mutual information, of the best of the estimator and an `other` reader,
    which comes with the halves that they are chosen by, too.
    """
    found = {}
    for source, matrix in matrices.items():
        for measure in MEASURES:
            scores = Scores(matrix, np.array(truth.RESPONSE_TOKENS))
            contrast = Contrast.from_matrix(scores, "per_response", marginals.get(measure))
            form = "difference_of_entropies" if measure == EXACT_MARGINAL else measure
            found[source, measure] = mutual_information(contrast, form)
    if other is not None:
        readers, half = ["estimator", other[0]], other[1]
        chosen = best_readers({x: found[x, "calibrated"] for x in readers}, half)
        for measure in MEASURES:
            of_readers = {reader: found[reader, measure] for reader in readers}
            found[BEST, measure] = read_by(of_readers, chosen, half)
    return found


def _fitted(
    fit: Fit, seed: int, world: World, policies: Mapping[str, Policy]
) -> dict[str, PairScorer]:
    """A reader for golden responses and for each policy's."""
    rng = np.random.default_rng([seed, FIT_STREAM])
    sample = _draw(IN_DISTRIBUTION, world, policies, FITTED_TO, rng, "fit")
    return {name: fit(sample.examples, said) for name, said in sample.responses.items()}


def _read(
    readers: Mapping[str, PairScorer],
    reasoning: Reasoning,
    sample: Sample,
    write: Write,
    advance: Report | None,
) -> Matrices:
    """As `_score`, each policy by its own reader, which tells its share of the contexts."""
    found: dict[str, NDArray[np.float64]] = {}
    count = len(sample.examples)
    for number, (name, reader) in enumerate(readers.items()):
        own = replace(sample, responses={name: sample.responses[name]})
        found |= _score(reader, reasoning, own, write, None)
        if advance is not None:
            before, after = (count * done // len(readers) for done in (number, number + 1))
            advance(after - before)
    return found


def _writer(estimator: Estimator, reasoning: Reasoning, sample: Sample) -> Write:
    """Reasonings of a block of contexts by where it begins, written once for all that read."""

    @cache
    def write(start: int) -> list[list[str | None]]:
        return reasoning.write(estimator, sample.examples[start : start + CONTEXTS_AT_ONCE])

    return write


def _score(
    scorer: PairScorer,
    reasoning: Reasoning,
    sample: Sample,
    write: Write,
    advance: Report | None,
) -> Matrices:
    """Policy name -> (N, N) log-probabilities; equal texts scored once."""
    texts = [text for responses in sample.responses.values() for text in responses]
    different, place = np.unique(texts, return_inverse=True)
    scores = np.empty((len(sample.examples), different.size))
    for start in range(0, len(sample.examples), CONTEXTS_AT_ONCE):
        block = sample.examples[start : start + CONTEXTS_AT_ONCE]
        pairs = np.argwhere(np.ones((len(block), different.size), dtype=bool))
        given = block, different.tolist(), reasoning, write(start), pairs
        found = score_pairs(scorer, *given, sample.split)
        scores[start : start + len(block)] = found.sum.reshape(len(block), -1)
        if advance is not None:
            advance(len(block))
    per_policy = np.split(scores[:, place], len(sample.responses), axis=1)
    return dict(zip(sample.responses, per_policy, strict=True))


def _marginals(
    world: World, policy: Policy, responses: Sequence[str], words: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Measure -> log m(y) of each response, where one is needed; the end of turn is certain."""
    return {
        "difference_of_entropies": bigram_log_probs([response.split() for response in responses]),
        EXACT_MARGINAL: np.log(truth.response_distribution(world, policy)[tuple(words.T)]),
    }


def _groups(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    for measure in MEASURES:
        for source in SOURCES:
            chosen = [row for row in rows if row["measure"] == measure and row["source"] == source]
            if chosen:
                yield {"measure": measure, "source": source}, chosen


def _by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    seeds = dict.fromkeys(row["seed"] for row in rows)
    return [[row for row in rows if row["seed"] == seed] for seed in seeds]


def _columns(rows: Sequence[Row], *names: str) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array([row[name] for row in rows]) for name in names)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None
