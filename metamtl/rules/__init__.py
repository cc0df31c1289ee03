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

`of(optimizer, model)` takes over an optimizer with its parameter groups and state. `Groups` combines rules
by prefixes of parameter names, `Clipped` clips gradients, `DropGrad` adds noise to them, `MetaCurvature`
and `Learned` are learned rules.

Not available: `LBFGS`, which evaluates the loss several times in a step; `SparseAdam`, which needs sparse
gradients. Instead of `maximize=True`, negate the loss.
"""

from .adafactor import Adafactor
from .adam import Adam, AdamW
from .adam_variants import Adamax, NAdam, RAdam
from .base import OptState, Rates, Rule
from .clipped import Clipped
from .descent import Descent
from .drop_grad import DropGrad
from .groups import Groups
from .learned import Learned
from .meta_curvature import MetaCurvature
from .muon import Muon
from .root_mean_square import Adadelta, Adagrad, RMSprop
from .sgd import SGD
from .step_sizes import ASGD, Rprop
from .take_over import TakenOver, of

Memory = OptState

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Clipped",
    "Descent",
    "DropGrad",
    "Groups",
    "Learned",
    "MetaCurvature",
    "Muon",
    "NAdam",
    "OptState",
    "RAdam",
    "RMSprop",
    "Rates",
    "Rprop",
    "Rule",
    "TakenOver",
    "of",
]
