"""Which prefixes of prompts are worth computing once for all the rows that begin with them.

Prompts form a tree: a node is a run of tokens that several continue, a role-play template, a
dialogue with many reasonings, a whole prompt with many responses. A node that is kept is computed
once, and its KV cache serves what hangs below it; a node that is not worth a pass of its own is
left out, and its tokens go into those below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coevolve.scoring.batching import Ids

MAX_DEPTH = 4
"""Prefixes that may stand on one another; each holds a cache while those below are computed."""


@dataclass
class Prefix:
    """Tokens `start` to `end` of a prompt, to be computed behind its parent's; `prompts` have their
    rows computed on it, and the longer prefixes `below` too.
    """

    prompt: int
    start: int
    end: int
    prompts: list[int] = field(default_factory=list)
    below: list["Prefix"] = field(default_factory=list)


@dataclass
class _Node:
    """A node of the tree of all prompts: a whole prompt with its rows, or what several begin with.

    Attributes:
        rows: of the prompt that ends here; 0 for a node between prompts.
        segments, length, squares: runs of tokens directly behind this node, if the nodes below are
            kept where that is worth it, and the sums of their tokens, responses apart, and squares.
        leaves: rows of the node and of all below it.
        gain: what sharing one level of prefixes among them saves.
    """

    prompt: int
    end: int
    rows: int = 0
    below: list["_Node"] = field(default_factory=list)
    segments: int = 0
    length: int = 0
    squares: int = 0
    leaves: int = 0
    gain: float = 0.0


def shared_prefixes(
    prompts: Sequence[Ids],
    rows: Sequence[int],
    *,
    token: float,
    run: float,
    pair: float = 0.0,
    depth: int = MAX_DEPTH,
) -> Prefix:
    """The root, an empty prefix, with all that is kept below it.

    A pass that stands on nothing computes half of the attention, since nobody sees what comes
    later; one that stands on a prefix works under a mask and computes all of it. So a short prefix
    of long prompts is better not shared.

    Args:
        rows: how many responses are scored after each prompt, at least one.
        token: what it saves not to compute one token again, in any unit.
        run: what one more forward pass costs, in the same unit.
        pair: what attention of one token to one other costs.
        depth: how many prefixes may stand on one another; 0 to share nothing.
    """
    root, after_children = _tree(prompts, rows)
    for node in after_children:
        node.leaves = node.rows + sum(child.leaves for child in node.below)
        node.segments = node.rows
        for child in node.below:
            # On a prefix all attention is computed anyway, so that only its tokens count.
            saved = (child.segments - 1) * (child.end - node.end) * token
            _add_segments(node, child, kept=saved > run)
        below = sum(child.gain for child in node.below)
        node.gain = max(below, _first_gain(node, node.leaves, token, run, pair))
    kept = Prefix(prompt=root.prompt, start=0, end=0)
    todo = [(child, kept, 0) for child in reversed(root.below)]
    while todo:
        node, above, level = todo.pop()
        if depth == 1:
            keep = level == 0 and node.gain > sum(child.gain for child in node.below)
        else:
            gain = (node.segments - 1) * (node.end - above.end) * token - run
            gain = gain if level else _first_gain(node, node.segments, token, run, pair)
            keep = level < depth and gain > 0
        if keep:
            prefix = Prefix(node.prompt, above.end, node.end)
            above.below.append(prefix)
            above, level = prefix, level + 1
        if node.rows:
            above.prompts.append(node.prompt)
        todo += [(child, above, level) for child in reversed(node.below)]
    return kept


def _add_segments(node: _Node, child: _Node, *, kept: bool) -> None:
    """Count what stands directly behind a node: the child, if kept, or what is behind the child."""
    count, own = (1, child.end - node.end) if kept else (child.segments, child.end - node.end)
    length, squares = (0, 0) if kept else (child.length, child.squares)
    node.segments += count
    node.length += length + count * own
    node.squares += squares + 2 * own * length + count * own**2


def _first_gain(node: _Node, segments: int, token: float, run: float, pair: float) -> float:
    """What it saves to compute a node once, and on it what would otherwise stand on nothing."""
    saved = (segments - 1) * (node.end * token + node.end**2 / 2 * pair)
    return saved - run - node.squares / 2 * pair


def _tree(prompts: Sequence[Ids], rows: Sequence[int]) -> tuple[_Node, list[_Node]]:
    """The tree's root, and its nodes in an order in which children come before their parents."""
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    root = _Node(prompt=0, end=0)
    finished: list[_Node] = []
    path, previous = [root], np.empty(0, dtype=np.int64)
    for index in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        common = _common_length(previous, arrays[index])
        last: Any = None
        while path[-1].end > common:
            last = path.pop()
            finished.append(last)
            if path[-1].end >= common:
                path[-1].below.append(last)
        if path[-1].end < common:
            between = _Node(prompt=index, end=common, below=[last])
            path.append(between)
        path.append(_Node(prompt=index, end=len(prompts[index]), rows=rows[index]))
        previous = arrays[index]
    while len(path) > 1:
        last = path.pop()
        finished.append(last)
        path[-1].below.append(last)
    return root, [*finished, root]


def _common_length(left: np.ndarray, right: np.ndarray) -> int:
    """How many tokens two prompts begin with in common."""
    width = min(len(left), len(right))
    different = np.flatnonzero(left[:width] != right[:width])
    return int(different[0]) if len(different) else width
