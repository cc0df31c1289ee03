"""Different rules for different parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..functional import Params, longest_prefix
from .base import OptState, Rates, Rule, Slots


class Groups(Rule):
    """One rule for each group of parameters, chosen by the longest matching prefix of the name.

    Args:
        rules: `{prefix: rule}`; the prefix `""` matches every parameter.
        states: initial states of parameters, by name, in place of those of their rules.

    Raises:
        TypeError: a value is not a rule.
        ValueError: in an inner loop: no prefix matches a parameter.

    >>> from metamtl.rules import SGD, Descent
    >>> groups = Groups({"head": SGD(momentum=0.9), "": Descent()})
    """

    def __init__(self, rules: Mapping[str, Rule], states: Mapping[str, Slots] | None = None) -> None:
        super().__init__()
        wrong = [rule for rule in rules.values() if not isinstance(rule, Rule)]
        if wrong:
            raise TypeError(f"Groups: {wrong[0]!r} is not an update rule; pass one of metamtl.rules.")
        self.prefixes = tuple(rules)
        self.rules = nn.ModuleList(rules.values())
        self.states = dict(states or {})

    @property
    def decays(self) -> bool:
        return any(rule.decays for rule in self.rules)  # type: ignore[misc]

    def _groups(self, names: list[str]) -> dict[int, list[str]]:
        groups: dict[int, list[str]] = {}
        for name in names:
            prefix = longest_prefix(name, self.prefixes)
            if prefix is None:
                raise ValueError(
                    f"Groups has no rule for {name!r}; its prefixes are"
                    f" {', '.join(map(repr, self.prefixes))}. The prefix '' matches every parameter."
                )
            groups.setdefault(self.prefixes.index(prefix), []).append(name)
        return groups

    def init(self, params: Params) -> OptState:
        states: dict[int, OptState] = {}
        for index, names in self._groups(list(params)).items():
            state = self.rules[index].init({name: params[name] for name in names})  # type: ignore[operator]
            for name in set(names) & set(self.states):
                state = {
                    **state,
                    name: {key: self.states[name][key].to(slot) for key, slot in state[name].items()},
                }
            states[index] = state
        return states

    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        new_params, new_state = dict(params), dict(opt_state)
        for index, names in self._groups(list(params)).items():
            part = {name: params[name] for name in names}
            grads = {name: gradients[name] for name in names if name in gradients}
            updated, new_state[index] = self.rules[index](part, grads, opt_state[index], lr, k)
            new_params.update(updated)
        return new_params, new_state
