"""The breaker against a plain restatement of its rules, over random histories."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from searchrl.transport.breaker import CONSECUTIVE_FAILURES, PROBE_INTERVAL, WINDOW, Breaker


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.outcomes: list[bool] = []
        self.opened: float | None = None
        self.last_probe: float | None = None

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        wait = self.breaker.admit(self.now)
        if self.opened is None:
            assert wait == 0
            return
        since = self.opened if self.last_probe is None else self.last_probe
        if wait == 0:
            assert self.now - since >= PROBE_INTERVAL - 1e-6
            self.last_probe = self.now
        else:
            assert 0 < wait <= PROBE_INTERVAL + 1e-9
            assert abs(since + PROBE_INTERVAL - self.now - wait) < 1e-6

    @rule(alive=st.sampled_from([True, False, False]))
    def outcome(self, alive: bool) -> None:
        self.breaker.record(alive, self.now)
        if self.opened is not None and alive:
            self.opened = self.last_probe = None
            self.outcomes = []
        self.outcomes.append(alive)
        recent = self.outcomes[-WINDOW:]
        row = self.outcomes[-CONSECUTIVE_FAILURES:]
        if self.opened is None and (
            (len(row) == CONSECUTIVE_FAILURES and not any(row))
            or (len(recent) == WINDOW and sum(recent) <= WINDOW / 2)
        ):
            self.opened = self.now

    @invariant()
    def agree(self) -> None:
        down = self.breaker.down_for(self.now)
        assert (down is None) == (self.opened is None)
        if down is not None and self.opened is not None:
            assert down == self.now - self.opened


BreakerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBreaker = BreakerMachine.TestCase


def test_half_of_the_latest_failing_is_enough() -> None:
    breaker = Breaker()
    for number in range(WINDOW):
        assert breaker.down_for(0.0) is None
        breaker.record(number % 2 == 0, 0.0)
    assert breaker.down_for(3.0) == 3.0


def test_a_sign_of_life_forgets_the_failures_before_it() -> None:
    breaker = Breaker()
    for _ in range(WINDOW):
        breaker.record(False, 0.0)
    breaker.record(True, 20.0)
    for _ in range(CONSECUTIVE_FAILURES - 1):
        breaker.record(False, 21.0)
    assert breaker.down_for(21.0) is None
    breaker.record(False, 21.0)
    assert breaker.down_for(22.0) == 1.0
