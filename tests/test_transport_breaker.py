"""The breaker as a state machine: what it promises, whatever order calls end in."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from searchrl.transport.breaker import IN_A_ROW, SECONDS_OPEN, WINDOW, Breaker, State


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin and end in any order while time passes.

    ``history`` holds what happened since the last change of state; a call belongs to the change it
    began after.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(lambda: self.now)
        self.state = State.CLOSED
        self.changes = 0
        self.history: list[bool] = []
        self.opened_at = -1.0
        self.down_since: float | None = None
        self.calls: list[tuple[int, int]] = []  # permit, and the change it began after

    def change(self, state: State) -> None:
        self.state = state
        self.changes += 1
        self.history = []
        if state is State.CLOSED:
            self.down_since = None
        elif self.down_since is None:
            self.down_since = self.now

    @precondition(lambda self: self.breaker.wait() == 0)
    @rule()
    def begin(self) -> None:
        assert self.state is not State.HALF_OPEN, "a second probe was let in"
        if self.state is State.OPEN:
            assert self.now >= self.opened_at + SECONDS_OPEN, "let in too early"
            self.change(State.HALF_OPEN)
        self.calls.append((self.breaker.enter(), self.changes))

    @precondition(lambda self: self.breaker.wait() > 0)
    @rule()
    def push_in(self) -> None:
        with pytest.raises(RuntimeError):
            self.breaker.enter()

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), good=st.sampled_from([True, False, False, None]))
    def end(self, data: st.DataObject, good: bool | None) -> None:
        call = data.draw(st.sampled_from(self.calls))
        self.calls.remove(call)
        self.breaker.leave(call[0], good)
        if call[1] != self.changes:
            return
        if self.state is State.HALF_OPEN:
            self.opened_at = self.now if good is False else self.opened_at
            self.change(State.CLOSED if good else State.OPEN)
        elif good is not None:
            self.history.append(good)
            if self.is_down():
                self.opened_at = self.now
                self.change(State.OPEN)

    def is_down(self) -> bool:
        in_a_row = self.history[-IN_A_ROW:] == [False] * IN_A_ROW
        window = self.history[-WINDOW:]
        return in_a_row or (len(window) == WINDOW and 2 * window.count(False) >= WINDOW)

    @rule(seconds=st.floats(0, 1.5 * SECONDS_OPEN))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_is_in_the_state_that_its_history_says(self) -> None:
        assert self.breaker.state is self.state

    @invariant()
    def it_says_how_long_to_wait(self) -> None:
        wait = self.breaker.wait()
        if self.state is State.CLOSED:
            assert wait == 0
        elif self.state is State.HALF_OPEN:
            assert 0 < wait < SECONDS_OPEN
        else:
            assert wait == max(0.0, self.opened_at + SECONDS_OPEN - self.now)

    @invariant()
    def it_says_how_long_the_service_has_been_down(self) -> None:
        expected = 0.0 if self.down_since is None else self.now - self.down_since
        assert self.breaker.down_for == expected


def hold(runs: int) -> None:
    run_state_machine_as_test(
        BreakerMachine,
        settings=settings(max_examples=runs, stateful_step_count=50, deadline=None),
    )


def test_T_C03_what_it_promises_holds() -> None:
    hold(80)


@pytest.mark.pipeline
def test_T_C03_what_it_promises_holds_a_thousand_times() -> None:
    hold(1_000)


def breaker_after(outcomes: list[bool]) -> Breaker:
    breaker = Breaker(lambda: 0.0)
    for good in outcomes:
        if breaker.wait() == 0:
            breaker.leave(breaker.enter(), good)
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([False] * 4, State.CLOSED),
        ([False] * 5, State.OPEN),
        ([False] * 4 + [True] + [False] * 4, State.CLOSED),
        ([True, False] * 9 + [True], State.CLOSED),
        ([True, False] * 10, State.OPEN),
        ([True, True, False] * 20, State.CLOSED),
    ],
)
def test_when_it_opens(outcomes: list[bool], state: State) -> None:
    assert breaker_after(outcomes).state is state
