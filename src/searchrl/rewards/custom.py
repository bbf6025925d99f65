"""A reward function of the user's own, named in the recipe as ``module:function``.

The function gets a finished :class:`~searchrl.agents.episode.Episode` and returns a number, or a
:class:`~searchrl.agents.episode.Reward` with parts for the metrics. It may be ``async``::

    def short_and_right(episode):
        right = episode.answer in episode.question.answers
        return float(right) - 0.01 * episode.searches

``episode.answer`` is the method's own answer, or the frozen generator's, or ``None``. An episode
that met a failed service does not get to it. What it raises is not caught: it is the user's code.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Awaitable, Callable

from searchrl.agents.episode import Episode, Reward
from searchrl.agents.generator import AnswerGenerator, final_answer
from searchrl.errors import InfrastructureError, InputError

RewardValue = float | Reward
UserFunction = Callable[[Episode], RewardValue | Awaitable[RewardValue]]


class CustomReward:
    """Scores episodes with a user's function.

    Args:
        name: the function as the recipe names it, for messages.
        function: see the module.
        generator: answers for methods that do not answer themselves.
    """

    def __init__(
        self, name: str, function: UserFunction, generator: AnswerGenerator | None = None
    ) -> None:
        self._name = name
        self._function = function
        self._generator = generator

    async def score(self, episode: Episode) -> Reward:
        """Score a finished episode; the value is ``None`` when a service failed.

        Raises:
            InputError: the function returned something that is not a finite number or a reward.
        """
        if episode.error is not None:
            return Reward(None)
        try:
            await final_answer(episode, self._generator)
        except InfrastructureError as error:
            episode.fail(error)
            return Reward(None)
        value = self._function(episode)
        return self._checked(await value if isinstance(value, Awaitable) else value)

    def _checked(self, value: object) -> Reward:
        reward = value if isinstance(value, Reward) else None
        number = reward.value if reward is not None else value
        # numpy's scalars are numbers too, and know how to become one.
        if not hasattr(number, "__float__") or not math.isfinite(float(number)):
            raise InputError(
                f"reward.function: {self._name} returned {value!r}; "
                "return a finite number or a searchrl.agents.episode.Reward"
            )
        return Reward(float(number), reward.parts if reward is not None else {})


def load_function(name: str) -> UserFunction:
    """Import a function by ``module:function``; modules beside the user are found too.

    Raises:
        InputError: the name has another form, or there is no such module or function.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not module_name or not attribute:
        raise InputError(f"reward.function: {name!r} is not of the form module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"reward.function: module {module_name!r} cannot be imported ({error}); "
            "start in its directory or install it"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"reward.function: {module_name} has no function {attribute!r}")
    _check_signature(name, function)
    accepted: UserFunction = function
    return accepted


def _check_signature(name: str, function: Callable[..., object]) -> None:
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise InputError(f"reward.function: {name} has to take one episode ({error})") from error
