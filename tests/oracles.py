"""Formulas in float64 NumPy and SciPy, to compare with; flaxhead is not imported."""

import numpy as np
from scipy.special import expit, log_expit, log_softmax


def one_hot(labels, classes):
    """Rows of zeros for negative class numbers."""
    return (np.asarray(labels)[..., None] == np.arange(classes)).astype(float)


def softmax_focal(logits, labels, gamma=0.0):
    """`-sum_c y_c (1 - p_c)^gamma log p_c`; `gamma` 0 is the cross-entropy."""
    logits, labels = np.asarray(logits, float), np.asarray(labels)
    if labels.ndim < logits.ndim:
        labels = one_hot(labels, logits.shape[-1])
    log_p = log_softmax(logits, axis=-1)
    return -np.sum(labels * (1 - np.exp(log_p)) ** gamma * log_p, axis=-1)


def sigmoid_terms(logits, labels, gamma=0.0):
    """Each label's `-y (1-p)^gamma log p - (1-y) p^gamma log(1-p)`; missing ones: 0."""
    logits, labels = np.asarray(logits, float), np.asarray(labels)
    if labels.ndim < logits.ndim:
        absent = labels[..., None] < 0
        labels = np.where(absent, np.nan, one_hot(labels, logits.shape[-1]))
    on = (1 - expit(logits)) ** gamma * log_expit(logits)
    off = expit(logits) ** gamma * log_expit(-logits)
    return np.nan_to_num(-labels * on - (1 - labels) * off)


def sigmoid_focal(logits, labels, gamma=0.0):
    """The sum of `sigmoid_terms` over labels."""
    return sigmoid_terms(logits, labels, gamma).sum(axis=-1)


def smooth(labels, smoothing, uniform):
    """Labels of which a share is moved to `uniform`."""
    return (1 - smoothing) * labels + smoothing * uniform


def weighted_statistics(x, weights):
    """Mean and population standard deviation of the columns of `[rows, dim]`."""
    x, weights = np.asarray(x, float), np.asarray(weights, float)
    x, weights = x[weights > 0], weights[weights > 0]
    mean = np.average(x, axis=0, weights=weights)
    return mean, np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))


def pooled(values, mask, how):
    """Tokens -> one vector a row, row by row; zeros where there is no real token."""
    rows = []
    for tokens, real in zip(np.asarray(values, float), np.asarray(mask), strict=True):
        kept = tokens[real]
        if not len(kept):
            rows.append(np.zeros(tokens.shape[-1]))
        else:
            of = {"mean": lambda t: t.mean(0), "max": lambda t: t.max(0)}
            rows.append(kept[0] if how == "cls" else of[how](kept))
    return np.stack(rows)


def schedule(name, step, steps, warmup, *, start=25.0, end=1e4):
    """A schedule's multiplier of the learning rate, from its definition.

    One cycle (Smith and Topin, 2018) rises from `1 / start` and falls to
    `1 / (start * end)`, along half cosines.
    """

    def half_cosine(high, low, progress):
        return low + (high - low) * (1 + np.cos(np.pi * progress)) / 2

    if name == "constant":
        return 1.0
    if name == "cosine":
        return half_cosine(1, 0, step / steps)
    if step >= warmup:
        low = 0 if name == "warmup_cosine" else 1 / (start * end)
        return half_cosine(1, low, (step - warmup) / (steps - warmup))
    if name == "warmup_cosine":
        return (step + 1) / (warmup + 1)
    return half_cosine(1 / start, 1, step / warmup)


def softmax_regression(kernel, bias, x, labels, weights):
    """Weighted mean cross-entropy and its gradient: `x^T (p - y)`, row by row."""
    x, weights = np.asarray(x, float), np.asarray(weights, float)
    kept = (weights > 0) & (np.asarray(labels) >= 0)
    x, labels, weights = x[kept], np.asarray(labels)[kept], weights[kept]
    logits = x @ np.asarray(kernel, float) + np.asarray(bias, float)
    loss = np.average(softmax_focal(logits, labels), weights=weights)
    error = np.exp(log_softmax(logits, axis=-1)) - one_hot(labels, logits.shape[-1])
    share = error * (weights / weights.sum())[:, None]
    return loss, x.T @ share, share.sum(0)


ACTIVATIONS = {
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
    "tanh": np.tanh,
}


def mlp(params, x, activation, *, layer_norm):
    """Two hidden layers and a linear one, from their parameters."""
    x = np.asarray(x, float)
    for layer in range(2):
        hidden = params[f"hidden_{layer}"]
        x = x @ np.asarray(hidden["kernel"], float) + hidden["bias"]
        if layer_norm:
            norm, variance = params[f"norm_{layer}"], x.var(axis=-1, keepdims=True)
            x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6)
            x = x * norm["scale"] + norm["bias"]
        x = ACTIVATIONS[activation](x)
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def products(lowered):
    """The lines of the matrix products in a lowered program, StableHLO."""
    lines = lowered.as_text().splitlines()
    return [line for line in lines if "stablehlo.dot_general" in line]


def in_full(lowered):
    """Whether all products multiply and add in full float32."""
    return all(
        "precision = [HIGHEST, HIGHEST]" in line and line.endswith(("<f32>", "xf32>"))
        for line in products(lowered)
    )
