"""Per-example losses, and losses of losses.

A loss is `(logits, labels, *, where=None, weights=None) -> [...]`: it is not averaged.

* `logits` are `[..., classes]` of any float type; the loss is float32.
* `labels` are class numbers `int [...]`, or `[..., classes]`: the probabilities of the
  classes, or, for the sigmoid losses, of each label. All losses are affine in these.
* An example that `where` drops, of weight 0, or of a negative class number, is absent:
  its loss is exactly 0, and so is its gradient, whatever its logits hold.

The order of composition is `class_weighted(label_smoothing(logit_adjusted(...), ...),
...)`: the smoothed loss is multiplied by the weight of the *true* class, so that class
weights don't change how much mass smoothing moves, nor where to.
"""

from collections.abc import Callable

from flaxhead.base import Loss
from flaxhead.losses.cross_entropy import (
    class_weighted,
    label_smoothing,
    sigmoid_binary_cross_entropy,
    sigmoid_focal,
    softmax_cross_entropy,
    softmax_focal,
)
from flaxhead.losses.long_tail import (
    asymmetric,
    balanced_softmax,
    effective_number_weights,
    ldam,
    logit_adjusted,
)
from flaxhead.losses.robust import generalized_cross_entropy, symmetric_cross_entropy

LOSSES: dict[str, Callable[..., Loss]] = {
    "softmax_cross_entropy": lambda: softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": lambda: sigmoid_binary_cross_entropy,
    "softmax_focal": softmax_focal,
    "sigmoid_focal": sigmoid_focal,
    "generalized_cross_entropy": generalized_cross_entropy,
    "symmetric_cross_entropy": symmetric_cross_entropy,
    "balanced_softmax": balanced_softmax,
    "ldam": ldam,
    "asymmetric": asymmetric,
}
"""Name -> what makes the loss of its numbers (`gamma`, `q`, `counts`, ...), by name."""

SIGMOID = ("sigmoid_binary_cross_entropy", "sigmoid_focal", "asymmetric")
"""Names of the losses of labels that are independent of each other."""

__all__ = [
    "LOSSES",
    "SIGMOID",
    "asymmetric",
    "balanced_softmax",
    "class_weighted",
    "effective_number_weights",
    "generalized_cross_entropy",
    "label_smoothing",
    "ldam",
    "logit_adjusted",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal",
    "softmax_cross_entropy",
    "softmax_focal",
    "symmetric_cross_entropy",
]
