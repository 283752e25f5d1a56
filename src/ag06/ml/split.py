"""Experiments where the unit is the event: who gets which variant, and whether the shares came out as they should."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.verdict import Variant

CONCENTRATION = 300.0
"""The Dirichlet's parameters add up to it: it looks for shares that are off by some percent, as broken splits are."""

LOST_CONCENTRATION = 2.0
"""Of those that are lost, nearly all may be of one variant."""


class SampleRatio(msgspec.Struct, frozen=True):
    """Whether the variants have the shares of the events that they should have.

    Attributes:
        mismatch: whether the shares are shown to be others; then do not trust the experiment's result.
        evidence: the e-value against the shares; `mismatch` from 1/alpha on.
        shares: the observed shares, by variant; empty before the first event.
        reason: why, in plain language.
    """

    mismatch: bool
    evidence: float
    shares: dict[str, float]
    reason: str


def assign(subject: str, salt: str, share: float = 0.5) -> Variant:
    """Return the variant of a subject: always the same for one salt, `"b"` for `share` (0 to 1) of all subjects.

    Where `share` grows, subjects go from a to b only. Use a salt of its own for each experiment: under the same salt
    two experiments give the same subjects their b. Raises `ConfigurationError` for a share outside 0 to 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigurationError(f"share={share!r}: the share of the subjects that get b is 0 to 1")
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    digest = blake2b(f"{len(salt)}:{salt}{subject}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "b" if int.from_bytes(digest, "big") < share * 2**64 else "a"


def sample_ratio_mismatch(
    counts: Mapping[str, int],
    shares: Mapping[str, float],
    alpha: float = 0.001,
    *,
    unit: str = "events",
    concentration: float = CONCENTRATION,
) -> SampleRatio:
    """Test whether events fell to the variants by `shares`; it may be looked at after every event.

    The test is the sequential multinomial one of Lindon and Malek (2020): a Bayes factor against a Dirichlet mixture of
    other shares, a martingale under the shares meant, so that the probability that it ever reaches 1/alpha is at most
    `alpha`. Events must fall independently: count subjects, not events, where a subject sends many; `unit` names them.
    With a small `concentration` it takes few of them to see shares that are far off, with a big one fewer to see those
    that are hardly off.

    Raises `ConfigurationError` for counts below 0, shares that are not above 0 or do not add up to 1, and counts and
    shares of different variants.
    """
    _check(counts, shares, alpha)
    total = sum(counts.values())
    logarithm = math.lgamma(concentration) - math.lgamma(concentration + total)
    for variant, share in shares.items():
        prior = concentration * share
        count = counts[variant]
        logarithm += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    evidence = math.exp(min(logarithm, 700.0))
    observed = {variant: count / total for variant, count in counts.items()} if total else {}
    told = ", ".join(
        f"{variant} has {counts[variant]} of {total} {unit} ({observed[variant]:.2%}) and should have {share:.2%}"
        for variant, share in shares.items()
        if total
    )
    if evidence >= 1 / alpha:
        reason = f"{told}: the split is broken, or one variant loses {unit}; do not trust the result"
        return SampleRatio(True, evidence, observed, reason)
    return SampleRatio(
        False, evidence, observed, f"the shares are as meant: {told}" if told else f"there are no {unit} yet"
    )


def _check(counts: Mapping[str, int], shares: Mapping[str, float], alpha: float) -> None:
    if not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise ConfigurationError(f"alpha={alpha!r}: use a number between 0 and 1, such as 0.001")
    if set(counts) != set(shares) or len(shares) < 2:
        raise ConfigurationError(
            f"counts of {sorted(counts)} and shares of {sorted(shares)}: give both for the same two or more variants"
        )
    for variant, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigurationError(f"variant {variant!r} has {count!r} events: use a whole number, 0 or more")
    if not all(share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ConfigurationError(f"shares {dict(shares)}: each must be above 0, and together they must be 1")
