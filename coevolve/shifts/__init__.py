"""Shifted test sets made from in-distribution data: one factor of x is moved, the others stay as
they are.

| kind | factor, split | what is done | golden |
|---|---|---|---|
| longer_turns | dialogue, OOD3Test | exchanges of other dialogues come before it | stays |
| word_order | dialogue, OOD3Test | words of the user's turns change places | stays |
| language, translated | user, OOD1Test | persona, turns, golden response translated | translated |
| language, paired | user, OOD1Test | the user is that of another language's example | none |
| unseen_character | character, OOD2Test | the character becomes one that IDTrain lacks | none |

Where the golden response no longer answers the row, none is written: it has to be given. Every row
says in its field `shift` what it was made from and how. A row depends on the seed, its source's
sample_ID and what it draws from, and not on which other rows are made.
"""

from coevolve.shifts import character, dialogue, language  # noqa: F401  they register kinds
from coevolve.shifts.build import (
    SHIFTS,
    add_subset,
    draw_sources,
    shifted,
    users_shift,
    with_golden,
)

__all__ = ["SHIFTS", "add_subset", "draw_sources", "shifted", "users_shift", "with_golden"]
