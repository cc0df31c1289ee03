"""Update rules of an inner loop: compute the next parameters from the gradient.

Example: `Gradient(5, lr=0.01, rule=rules.Adam(betas=(0.9, 0.99)))`. Each rule except `Descent` computes the
update of the `torch.optim` optimizer of the same name, with its options; the learning rate is an argument
of `Gradient`. Rules are pure functions, `init(params) -> opt_state` and `update(params, gradients,
opt_state, lr, k) -> (params, opt_state)`. The outer gradient is also propagated through the state
(momentum, averages of squares).

Every numeric option is a number or an `nn.Parameter`. An `nn.Parameter` is a parameter of the rule, and
hence of the adapter, and is learned: `rules.SGD(momentum=nn.Parameter(torch.tensor(0.9)))`. Its range is
checked when the rule is constructed, not after the outer optimizer has changed it.

If a gradient is exactly 0 (a dead ReLU, an unused row), the average of its squares is 0, and the derivative
of the square root is infinite. The rules use the limit of the derivative of the direction instead, in
every precision.

Not available: `ASGD`, whose step size depends on the learning rates of earlier steps; `Rprop`, whose
direction is a sign, with derivative zero; `Adafactor`, `Muon` and `LBFGS`, which combine the entries of a
matrix or the values of several steps; `SparseAdam`, which needs sparse gradients. Instead of
`maximize=True`, negate the loss.
"""

from .adam import Adam, AdamW
from .adam_variants import Adamax, NAdam, RAdam
from .base import OptState, Rates, Rule
from .descent import Descent
from .drop_grad import DropGrad
from .learned import Learned
from .meta_curvature import MetaCurvature
from .root_mean_square import Adadelta, Adagrad, RMSprop
from .sgd import SGD

Memory = OptState

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Descent",
    "DropGrad",
    "Learned",
    "MetaCurvature",
    "NAdam",
    "OptState",
    "RAdam",
    "RMSprop",
    "Rates",
    "Rule",
]
