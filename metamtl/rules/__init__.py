"""Update rules of an inner loop: the next parameters, given the gradient.

`Gradient(5, lr=0.01, rule=rules.Adam(betas=(0.9, 0.99)))`. Each rule but `Descent` computes the update of
the `torch.optim` optimizer of the same name, with its options; the learning rate is an argument of
`Gradient`. Rules are pure functions, `init(params) -> opt_state` and `update(params, gradients,
opt_state, lr, k) -> (params, opt_state)`, and the outer gradient is propagated through the state
(momentum, averages of squares) as well.

Every numeric option is a number or an `nn.Parameter`. An `nn.Parameter` is a parameter of the rule, hence
of the adapter, and is learned: `rules.SGD(momentum=nn.Parameter(torch.tensor(0.9)))`. Its range is
checked when the rule is constructed, not after the outer optimizer has changed it.

Gradients of exactly 0 (a dead rectifier, an unused row): an average of squares is 0 there, and the
derivative of its root infinite. The rules use the limit of the direction's derivative instead, in every
precision.

Not available: `ASGD`, whose step size depends on the learning rates of earlier steps; `Rprop`, whose
direction is a sign, with derivative zero; `Adafactor`, `Muon` and `LBFGS`, which combine the entries of a
matrix or the values of several steps; `SparseAdam`, which needs sparse gradients. Instead of
`maximize=True` negate the loss.
"""

from .adam import Adam, AdamW
from .adam_variants import Adamax, NAdam, RAdam
from .base import OptState, Rates, Rule
from .descent import Descent
from .root_mean_square import Adadelta, Adagrad, RMSprop
from .sgd import SGD

Memory = OptState

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Descent",
    "NAdam",
    "OptState",
    "RAdam",
    "RMSprop",
    "Rates",
    "Rule",
    "SGD",
]
