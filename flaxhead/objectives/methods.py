r"""The methods of the literature, spelled with `consistency`'s slots.

In the equations \(q\) is what the teacher says of a row's weak view, without gradient,
\(p\) what the head says of its strong view, \(H\) the cross-entropy, and the mean is
over all rows. Each is the unlabelled part alone: add it to `supervised`, by
`a + weight * b`, with the weight that the paper calls \(\lambda_u\).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from flaxhead.base import Array, Head, Objective
from flaxhead.metrics import Output
from flaxhead.objectives.consistency import (
    Views,
    consistency,
    cross_entropy,
    ema_teacher,
    itself,
    sigmoid_cross_entropy,
    sigmoid_squared,
    squared,
)
from flaxhead.objectives.regularisers import vat
from flaxhead.objectives.targets import align, hard, sharpen, sigmoid_sharpen, soft
from flaxhead.objectives.thresholds import (
    everything,
    flex_threshold,
    free_threshold,
    relative_threshold,
    soft_weight,
    threshold,
)
from flaxhead.objectives.views import identity, with_view


def pi(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    output: Output = "softmax",
) -> Objective:
    r"""The Pi-model: \(\frac1C |q - p|^2\).

    Source: Laine and Aila, 2017, "Temporal ensembling", where both passes have a
    gradient.
    """
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=soft(),
        select=everything(),
        divergence=squared if output == "softmax" else sigmoid_squared,
        rows=rows,
        axis=axis,
        output=output,
    )


def mean_teacher(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    output: Output = "softmax",
    decay: float | Array = 0.99,
) -> Objective:
    r"""Mean Teacher: \(\frac1C |q' - p|^2\), with \(q'\) of averaged parameters.

    Source: Tarvainen and Valpola, 2017, "Mean teachers are better role models"; the
    division by the number of classes is of the authors' program.
    """
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=ema_teacher(decay),
        target=soft(),
        select=everything(),
        divergence=squared if output == "softmax" else sigmoid_squared,
        rows=rows,
        axis=axis,
        output=output,
    )


def pseudo_label(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views] = (identity, identity),
    rows: int = 0,
    axis: str | None = None,
    confidence: float | Array = 0.95,
) -> Objective:
    r"""Pseudo-label: \(1[\max q \ge \tau]\, H(\arg\max q, p)\), of the row itself.

    Source: Lee, 2013, "Pseudo-label", where the confidence is 0.
    """
    return fixmatch(
        head,
        classes=classes,
        views=views,
        rows=rows,
        axis=axis,
        confidence=confidence,
    )


def uda(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    output: Output = "softmax",
    confidence: float | Array = 0.8,
    temperature: float | Array = 0.4,
) -> Objective:
    r"""UDA: \(1[\max q \ge \tau]\, H(q^{1/T} / \sum q^{1/T}, p)\).

    Of sigmoids it is this for each label of a row, as if on and off were two classes.

    Source: Xie et al., 2020, "Unsupervised data augmentation for consistency training".
    """
    one = output == "softmax"
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=sharpen(temperature)
        if one
        else sigmoid_sharpen(temperature, confidence),
        select=threshold(confidence) if one else everything(),
        divergence=cross_entropy if one else sigmoid_cross_entropy,
        rows=rows,
        axis=axis,
        output=output,
    )


def mixmatch(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    augmentations: int = 2,
    temperature: float | Array = 0.5,
) -> Objective:
    r"""MixMatch: \(\frac1{CK} \sum_k |\hat q - p_k|^2\), \(\hat q\) sharpened.

    The target is the sharpened mean of what is said of \(K\) draws of the weak view.
    Its mixing of labelled rows is `with_view(supervised(...), mixup(0.75, classes))`;
    that of rows with guessed labels isn't spelled.

    Source: Berthelot et al., 2019, "MixMatch", where both views are of one kind.
    """
    weak, strong = (
        each if isinstance(each, tuple) else (each,) * augmentations for each in views
    )
    return consistency(
        head,
        classes=classes,
        views=(weak, strong),
        teacher=itself(),
        target=sharpen(temperature),
        select=everything(),
        divergence=squared,
        rows=rows,
        axis=axis,
    )


def fixmatch(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    confidence: float | Array = 0.95,
) -> Objective:
    r"""FixMatch: \(1[\max q \ge \tau]\, H(\arg\max q, p)\).

    Source: Sohn et al., 2020, "FixMatch".
    """
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=hard(),
        select=threshold(confidence),
        divergence=cross_entropy,
        rows=rows,
        axis=axis,
    )


def flexmatch(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    confidence: float | Array = 0.95,
) -> Objective:
    r"""FlexMatch: \(1[\max q \ge T(\arg\max q)]\, H(\arg\max q, p)\).

    The threshold \(T(c)\) is that of `flex_threshold`, which needs `rows`.

    Source: Zhang et al., 2021, "FlexMatch".
    """
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=hard(),
        select=flex_threshold(confidence),
        divergence=cross_entropy,
        rows=rows,
        axis=axis,
    )


def freematch(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    decay: float | Array = 0.999,
) -> Objective:
    r"""FreeMatch: \(1[\max q \ge \tau(\arg\max q)]\, H(\arg\max q, p)\).

    The threshold \(\tau(c)\) is that of `free_threshold`. The paper's fairness term
    isn't spelled; `marginal_entropy` is its nearest kin.

    Source: Wang et al., 2023, "FreeMatch".
    """
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=hard(),
        select=free_threshold(decay),
        divergence=cross_entropy,
        rows=rows,
        axis=axis,
    )


def softmatch(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    decay: float | Array = 0.999,
) -> Objective:
    r"""SoftMatch: \(\lambda(\mathrm{UA}(q))\, H(\arg\max q, p)\).

    The weight \(\lambda\) is that of `soft_weight`; UA aligns to the uniform prior what
    the weight sees, and not the target.

    Source: Chen et al., 2023, "SoftMatch".
    """
    uniform = jnp.full(classes, 1 / classes)
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=hard(),
        select=align(soft_weight(decay), prior=uniform, decay=decay),
        divergence=cross_entropy,
        rows=rows,
        axis=axis,
    )


def adamatch(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    share: float | Array = 0.9,
    decay: float | Array = 0.999,
    decay_of_threshold: float | Array = 0.9,
) -> Objective:
    r"""AdaMatch: \(1[\max \tilde q \ge \tau \bar m]\, H(\tilde q, p)\).

    The aligned \(\tilde q\) is \(q\, \bar q_{labelled} / \bar q\), divided by its sum,
    and \(\bar m\) the mean of \(\max q\) over the labelled rows. Means are of the
    batch in the paper (both decays 0), and running ones here, as of few labels few are
    in a batch. The paper's mixing of logits, for batch normalisation, isn't spelled.

    Source: Berthelot et al., 2022, "AdaMatch".
    """
    return consistency(
        head,
        classes=classes,
        views=views,
        teacher=itself(),
        target=align(soft(), decay=decay),
        select=align(relative_threshold(share, decay_of_threshold), decay=decay),
        divergence=cross_entropy,
        rows=rows,
        axis=axis,
    )


def _vat(
    head: Head,
    *,
    classes: int,
    views: tuple[Views, Views],
    rows: int = 0,
    axis: str | None = None,
    radius: float | Array = 1.0,
    xi: float | Array = 0.01,
    iterations: int = 1,
) -> Objective:
    """`vat` of the weak view; the strong one is of its own making."""
    del classes, rows, axis
    weak = views[0][0] if isinstance(views[0], tuple) else views[0]
    return with_view(vat(head, radius=radius, xi=xi, iterations=iterations), weak)


CONSISTENCY: dict[str, Callable[..., Objective]] = {
    "pi": pi,
    "mean_teacher": mean_teacher,
    "pseudo_label": pseudo_label,
    "vat": _vat,
    "uda": uda,
    "mixmatch": mixmatch,
    "fixmatch": fixmatch,
    "flexmatch": flexmatch,
    "freematch": freematch,
    "softmatch": softmatch,
    "adamatch": adamatch,
}
"""Name -> `(head, *, classes, views, rows=0, axis=None, ...) -> Objective`, where views
are (weak, strong), `rows` are those of the whole data, and the rest is the method's."""

SIGMOID_CONSISTENCY = ("pi", "mean_teacher", "uda")
"""Those that take `output="sigmoid"` too, of several labels a row."""
