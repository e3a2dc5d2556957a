"""What every queue must do: the same tests on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from mlflow_domino.errors import Conflict, NotFound
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.prediction import (
    Attempt,
    Lease,
    Outcome,
    Progress,
    State,
    Submission,
    Webhook,
    begun_ms,
)
from mlflow_domino.queue.queue import Queue
from mlflow_domino.queue.schema import predictions
from mlflow_domino.queue.turn import Turn

T = TypeVar("T")
E = "e" * 24
OTHER = "f" * 24
KEEP_MS = 1000_000
REQUEST = '{"parameters": {"x": 1.0}}'
DONE = Outcome(State.SUCCEEDED, '{"y": 2}')


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


class Desk:
    """A queue and a dispatcher's turns on it, at the time of a clock."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()
        self.queue = Queue(database, clock=self.clock)

    def submit(self, endpoint: str = E, **more: Any) -> str:
        values = {"request": REQUEST, "deadline_ms": self.clock.ms + KEEP_MS, **more}
        return self.queue.submit(Submission(endpoint, **values))[0]

    def turn(self, change: Callable[[Turn], T], owner: str = "one") -> T:
        def work(connection: Any) -> T:
            turn = Turn(connection, owner, self.clock())
            result = change(turn)
            turn.end()
            return result

        return self.database.write(work)

    def take(self, wanted: int = 1, *, capacity: int = 100, owner: str = "one", endpoint: str = E) -> list[Lease]:
        return self.turn(
            lambda turn: turn.take(endpoint, wanted, capacity=capacity, version=3, keep_ms=KEEP_MS), owner=owner
        )

    def finish(self, lease: Lease, outcome: Outcome = DONE, owner: str = "one") -> bool:
        return self.turn(lambda turn: turn.finish(lease, outcome, keep_ms=KEEP_MS, ran_ms=5), owner=owner)

    def lose(self, lease: Lease, *, most: int = 3, strike: bool = True) -> State | None:
        attempt = Attempt(lease.fence, 3, self.clock.ms, self.clock.ms, "the replica ended")
        return self.turn(lambda turn: turn.lose(lease, attempt, most=most, keep_ms=KEEP_MS, strike=strike))

    def state(self, prediction_id: str, endpoint: str = E) -> State:
        found = self.queue.get(endpoint, prediction_id)
        assert found is not None
        return found.state


class QueueContract:
    """Subclasses give a `desk` fixture on an empty database, and `another`, which opens the same one again."""

    def test_a_prediction_is_queued_run_and_answered(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        assert begun_ms(prediction_id) == desk.clock.ms
        assert desk.state(prediction_id) is State.QUEUED
        (lease,) = desk.take()
        assert (lease.id, lease.fence, lease.request) == (prediction_id, 1, REQUEST)
        desk.clock.ms += 20
        assert desk.finish(lease)
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert (found.state, found.result, found.errors, found.version) == (State.SUCCEEDED, '{"y": 2}', (), 3)
        assert (found.submitted_ms, found.finished_ms) == (desk.clock.ms - 20, desk.clock.ms)

    def test_one_endpoint_does_not_see_anothers(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        assert desk.queue.get(OTHER, prediction_id) is None
        assert desk.take(endpoint=OTHER) == []
        assert desk.queue.find(OTHER) == []
        with pytest.raises(NotFound):
            desk.queue.cancel(OTHER, prediction_id, keep_ms=1)
        with pytest.raises(NotFound):
            desk.queue.retry(OTHER, prediction_id, deadline_ms=1)

    def test_what_is_urgent_comes_first_then_what_is_old(self, desk: Desk) -> None:
        ids = []
        for priority in (2, 1, 1, 0):
            ids.append(desk.submit(priority=priority))
            desk.clock.ms += 1
        assert [lease.id for lease in desk.take(10)] == [ids[3], ids[1], ids[2], ids[0]]

    def test_a_lease_is_given_once_and_its_answer_stored_once(self, desk: Desk) -> None:
        desk.submit()
        (lease,) = desk.take()
        assert desk.take() == []
        assert desk.finish(lease)
        assert not desk.finish(lease, Outcome(State.FAILED, errors=("late",)))
        assert desk.state(lease.id) is State.SUCCEEDED

    def test_an_answer_behind_the_fence_changes_nothing(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        (first,) = desk.take(owner="one")
        assert desk.turn(lambda turn: turn.abandon(first.held, {}, KEEP_MS), owner="two") == E
        (second,) = desk.take(owner="two")
        assert second.fence == first.fence + 1
        assert not desk.finish(first)
        assert desk.state(prediction_id) is State.RUNNING
        assert desk.lose(first) is None
        assert desk.finish(second, Outcome(State.SUCCEEDED, "2"), owner="two")
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert found.result == "2"
        assert desk.queue.counts()[E]["fenced"] == 1

    @pytest.mark.parametrize("comes", ["answer", "loss", "release", "progress", "end of its dispatcher"])
    def test_what_comes_of_a_lease_that_a_crashed_database_forgot_changes_nothing(self, desk: Desk, comes: str) -> None:
        desk.submit()
        (forgotten,) = desk.take()
        again = {"state": int(State.QUEUED), "fence": 0, "owner": None, "due_ms": predictions.c.deadline_ms}
        desk.database.write(lambda connection: connection.execute(predictions.update().values(**again)))
        desk.clock.ms += 1
        (lease,) = desk.take()
        assert lease.fence == forgotten.fence
        if comes == "answer":
            assert not desk.finish(forgotten)
        elif comes == "loss":
            assert desk.lose(forgotten) is None
        elif comes == "release":
            desk.turn(lambda turn: turn.release(forgotten))
        elif comes == "progress":
            desk.turn(lambda turn: turn.note(forgotten, Progress(1.0, "")))
        else:
            assert desk.turn(lambda turn: turn.abandon(forgotten.held, {}, KEEP_MS), owner="two") is None
        found = desk.queue.get(E, lease.id)
        assert found is not None
        assert (found.state, found.progress) == (State.RUNNING, None)
        assert desk.finish(lease)

    def test_many_dispatchers_never_lease_more_than_the_replicas_run(self, desk: Desk) -> None:
        for _ in range(60):
            desk.submit()
        taken: list[Lease] = []

        def dispatch(owner: str) -> None:
            for _ in range(10):
                taken.extend(desk.take(3, capacity=7, owner=owner))

        self.together([lambda n=n: dispatch(f"d{n}") for n in range(6)])
        if not desk.database.sqlite:  # there only one dispatcher can be, and it counts by itself
            assert len(taken) == 7
        assert len({lease.id for lease in taken}) == len(taken)

    def test_a_lost_run_is_tried_again_after_a_pause_and_then_failed_with_its_history(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        pauses = []
        for _ in range(2):
            (lease,) = desk.take()
            assert desk.lose(lease) is State.DELAYED
            assert desk.take() == []
            found = desk.queue.get(E, prediction_id)
            assert found is not None
            pauses.append(found.due_ms - desk.clock.ms)
            desk.clock.ms += pauses[-1]
            assert desk.turn(lambda turn: turn.wake()) == {E}
        assert pauses == [1000, 2000]
        (lease,) = desk.take()
        assert desk.lose(lease) is State.FAILED
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert found.errors == ("no answer came in 3 attempts; the last one: the replica ended",)
        assert [a.fence for a in found.attempts] == [1, 2, 3]
        assert desk.queue.counts()[E]["retried"] == 2

    def test_a_run_that_an_update_cut_off_is_no_strike(self, desk: Desk) -> None:
        desk.submit()
        for _ in range(10):
            (lease,) = desk.take()
            assert desk.lose(lease, strike=False) is State.QUEUED

    def test_leases_that_came_to_no_run_are_no_attempts(self, desk: Desk) -> None:
        desk.submit()
        for _ in range(200):
            (lease,) = desk.take()
            desk.turn(lambda turn, lease=lease: turn.release(lease))
        (lease,) = desk.take()
        assert desk.lose(lease, strike=False) is State.QUEUED
        (lease,) = desk.take()
        assert desk.lose(lease) is State.DELAYED

    def test_what_loses_its_dispatcher_each_time_waits_longer_and_longer_and_is_failed(self, desk: Desk) -> None:
        in_a_day = desk.clock.ms + 86_400_000
        prediction_id = desk.submit(webhook=Webhook("https://example.com/hook"), deadline_ms=in_a_day)
        pauses: list[int] = []
        while leases := desk.take():
            abandoned = desk.turn(lambda turn: turn.abandon(leases[0].held, {E: KEEP_MS}, 1))
            assert abandoned == E
            found = desk.queue.get(E, prediction_id)
            assert found is not None
            if found.state is State.DELAYED:
                pauses.append(found.due_ms - desk.clock.ms)
                desk.clock.ms = found.due_ms
                desk.turn(lambda turn: turn.wake())
        assert (len(found.attempts), found.strikes) == (30, 0)
        assert pauses[:3] == [1000, 2000, 4000]
        assert max(pauses) == 60_000
        assert found.errors == ("no answer came in 30 attempts; the last one: its dispatcher was lost",)
        assert found.due_ms == desk.clock.ms + KEEP_MS
        told = desk.queue.webhook(prediction_id)
        assert told is not None
        assert told["state"] == "pending"
        assert desk.queue.counts()[E]["failed"] == 1
        desk.queue.retry(E, prediction_id, deadline_ms=desk.clock.ms + 1000)
        (lease,) = desk.take()
        assert desk.lose(lease, strike=False) is State.QUEUED

    def test_what_was_to_be_stopped_does_not_run_again_when_its_dispatcher_is_gone(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        (lease,) = desk.take()
        assert desk.turn(lambda turn: turn.unwanted()) == []
        desk.queue.cancel(E, prediction_id, keep_ms=KEEP_MS)
        assert desk.turn(lambda turn: turn.unwanted()) == [prediction_id]
        assert desk.turn(lambda turn: turn.unwanted(), owner="two") == []
        desk.turn(lambda turn: turn.abandon(lease.held, {}, KEEP_MS), owner="two")
        assert desk.state(prediction_id) is State.CANCELLED

    def test_what_was_leased_and_not_sent_goes_back_as_it_was(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        (lease,) = desk.take()
        desk.turn(lambda turn: turn.release(lease))
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert (found.state, found.strikes, found.attempts) == (State.QUEUED, 0, ())

    @pytest.mark.parametrize("lost", ["replica", "dispatcher"])
    def test_the_time_of_a_run_that_was_lost_is_no_time_in_the_queue(self, desk: Desk, lost: str) -> None:
        prediction_id = desk.submit(deadline_ms=desk.clock.ms + 10)
        desk.clock.ms += 4
        (lease,) = desk.take()
        desk.clock.ms += 5000
        if lost == "replica":
            attempt = Attempt(lease.fence, 3, desk.clock.ms - 5000, desk.clock.ms, "an update ended it")
            desk.turn(lambda turn: turn.lose(lease, attempt, most=3, keep_ms=KEEP_MS, strike=False))
        else:
            assert desk.turn(lambda turn: turn.abandon(lease.held, {}, KEEP_MS), owner="two") == E
        assert desk.turn(lambda turn: turn.expire({}, KEEP_MS)) == 0
        desk.clock.ms += 6
        assert desk.turn(lambda turn: turn.expire({}, KEEP_MS)) == 1
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert found.errors == ("it had not begun again by its deadline, after runs that were lost",)

    def test_the_word_of_a_model_on_its_progress_is_kept_until_it_runs_again(self, desk: Desk) -> None:
        def progress() -> Progress | None:
            found = desk.queue.get(E, first.id)
            assert found is not None
            return found.progress

        desk.submit()
        (first,) = desk.take()
        half = Progress(0.5, "5 of 10 \u0000 \ud800")
        desk.turn(lambda turn: turn.note(first, half))
        assert progress() == half
        desk.turn(lambda turn: turn.release(first))
        (second,) = desk.take()
        assert progress() is None
        desk.turn(lambda turn: turn.note(first, half))
        assert progress() is None
        words = Progress(None, "nearly there")
        desk.turn(lambda turn: turn.note(second, words))
        assert desk.finish(second)
        desk.turn(lambda turn: turn.note(second, half))
        assert progress() == words

    def test_what_waits_past_its_deadline_is_failed_and_says_so(self, desk: Desk) -> None:
        ids = [desk.submit(deadline_ms=desk.clock.ms + 10) for _ in range(3)]
        desk.clock.ms += 10
        assert desk.take(10) == []
        assert all(desk.state(one) is State.FAILED for one in ids)
        late = desk.submit(deadline_ms=desk.clock.ms + 10)
        desk.clock.ms += 10
        assert desk.turn(lambda turn: turn.expire({}, KEEP_MS)) == 1
        found = desk.queue.get(E, late)
        assert found is not None
        assert (found.state, found.errors) == (State.FAILED, ("it had not begun by its deadline",))
        assert desk.queue.counts()[E]["expired"] == 4

    def test_what_has_ended_is_removed_after_its_time_with_all_that_belongs_to_it(self, desk: Desk) -> None:
        webhook = Webhook("https://example.com/hook")
        prediction_id = desk.submit(webhook=webhook, key="k", digest="d")
        (lease,) = desk.take()
        desk.finish(lease)
        assert desk.turn(lambda turn: turn.remove()) == 0
        desk.clock.ms += KEEP_MS
        assert desk.turn(lambda turn: turn.remove()) == 1
        assert desk.queue.get(E, prediction_id) is None
        assert desk.queue.webhook(prediction_id) is None
        assert desk.submit(key="k", digest="other") != prediction_id

    def test_a_clock_that_was_set_back_does_not_hold_up_a_retry(self, desk: Desk) -> None:
        desk.submit()
        (lease,) = desk.take()
        assert desk.lose(lease) is State.DELAYED
        desk.clock.ms -= 86_400_000
        assert desk.turn(lambda turn: turn.wake()) == {E}
        assert len(desk.take()) == 1

    def test_a_clock_that_was_set_back_does_not_hold_up_a_webhook(self, desk: Desk) -> None:
        desk.submit(webhook=Webhook("https://example.com/hook"))
        (lease,) = desk.take()
        desk.finish(lease)
        desk.clock.ms -= 86_400_000
        (delivery,) = desk.turn(lambda turn: turn.claim(4, ()))
        assert delivery.prediction_id == lease.id
        assert desk.turn(lambda turn: turn.claim(4, ())) == []

    def test_heartbeats_change_a_mark_whatever_the_clock_does(self, desk: Desk) -> None:
        desk.submit()
        (lease,) = desk.take(owner="one")
        marks = set()
        for step in (0, 1000, -86_400_000, 0):
            desk.clock.ms += step
            marks.add(desk.turn(lambda turn: turn.others(), owner="two")[lease.held])
            assert desk.turn(lambda turn: turn.renew(), owner="one") == {lease.held: False}
        assert len(marks) == 4
        assert desk.turn(lambda turn: turn.others(), owner="one") == {}

    def test_the_same_key_is_the_same_prediction(self, desk: Desk) -> None:
        submission = Submission(E, REQUEST, desk.clock.ms + 1000, key="k", digest="d")
        first, replayed = desk.queue.submit(submission)
        assert not replayed
        assert desk.queue.submit(submission) == (first, True)
        with pytest.raises(Conflict):
            desk.queue.submit(Submission(E, "[]", desk.clock.ms + 1000, key="k", digest="other"))
        assert desk.queue.submit(Submission(OTHER, "[]", desk.clock.ms + 1000, key="k", digest="other"))[0] != first
        assert len(desk.queue.find(E)) == 1

    def test_the_same_key_at_once_is_one_prediction(self, desk: Desk) -> None:
        submission = Submission(E, REQUEST, desk.clock.ms + 1000, key="k", digest="d")
        ids: list[str] = []
        self.together([lambda: ids.append(desk.queue.submit(submission)[0])] * 12)
        assert len(ids) == 12
        assert len(set(ids)) == 1

    def test_what_waits_is_cancelled_at_once(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        assert desk.queue.cancel(E, prediction_id, keep_ms=KEEP_MS) is State.CANCELLED
        assert desk.take() == []
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert (found.state.status, found.errors) == ("failed", ("cancelled before it ran",))
        assert desk.queue.cancel(E, prediction_id, keep_ms=KEEP_MS) is State.CANCELLED

    def test_of_what_runs_a_cancel_is_noted(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        (lease,) = desk.take()
        assert desk.queue.cancel(E, prediction_id, keep_ms=KEEP_MS) is State.RUNNING
        assert desk.turn(lambda turn: turn.renew()) == {lease.held: True}
        desk.turn(lambda turn: turn.keep_running(lease))
        assert desk.turn(lambda turn: turn.renew()) == {lease.held: False}
        desk.queue.cancel(E, prediction_id, keep_ms=KEEP_MS)
        assert desk.lose(lease) is State.CANCELLED

    def test_what_failed_can_run_again_with_all_its_attempts(self, desk: Desk) -> None:
        prediction_id = desk.submit()
        with pytest.raises(Conflict, match="queued"):
            desk.queue.retry(E, prediction_id, deadline_ms=1)
        (lease,) = desk.take()
        assert desk.lose(lease, most=1) is State.FAILED
        desk.queue.retry(E, prediction_id, deadline_ms=desk.clock.ms + 1000)
        (lease,) = desk.take()
        assert lease.strikes == 0
        assert desk.finish(lease)
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert (found.state, found.errors) == (State.SUCCEEDED, ())

    def test_predictions_are_listed_newest_first_in_pages(self, desk: Desk) -> None:
        ids = []
        for n in range(7):
            ids.append(desk.submit(priority=n % 3))
            desk.clock.ms += 1
        for lease in desk.take(2):
            desk.finish(lease)
        done = [one.id for one in desk.queue.find(E, states=(State.SUCCEEDED,))]
        assert done == sorted(done, reverse=True)
        assert len(done) == 2
        page = desk.queue.find(E, limit=4)
        rest = desk.queue.find(E, limit=4, before=page[-1].id)
        assert [one.id for one in (*page, *rest)] == ids[::-1]

    def test_depth_and_position_count_what_waits(self, desk: Desk) -> None:
        first = desk.clock.ms
        ids = []
        for priority in (1, 2, 1, 0):
            ids.append(desk.submit(priority=priority))
            desk.clock.ms += 1
        desk.submit(OTHER)
        depth = desk.queue.depth(E)
        assert (depth.queued, depth.delayed, depth.running, depth.oldest_ms) == (4, 0, 0, first)
        found = desk.queue.get(E, ids[1])
        assert found is not None
        assert desk.queue.position(found) == 3
        assert desk.queue.position(found, limit=2) is None
        (lease,) = desk.take()
        desk.lose(lease)
        depth = desk.queue.depth(E)
        assert (depth.queued, depth.delayed, depth.waiting) == (3, 1, 4)

    def test_a_webhook_is_due_when_its_prediction_ends_however_it_ends(self, desk: Desk) -> None:
        def ended(outcome: Outcome) -> str:
            desk.submit(webhook=Webhook("https://example.com/hook", "s"))
            (lease,) = desk.take()
            desk.finish(lease, outcome)
            return lease.id

        def expired() -> str:
            one = desk.submit(webhook=Webhook("https://example.com/hook"), deadline_ms=desk.clock.ms + 5)
            desk.clock.ms += 5
            desk.turn(lambda turn: turn.expire({}, KEEP_MS))
            return one

        def cancelled() -> str:
            one = desk.submit(webhook=Webhook("https://example.com/hook"))
            assert desk.queue.webhook(one)["state"] == "waiting"
            desk.queue.cancel(E, one, keep_ms=KEEP_MS)
            return one

        failed = Outcome(State.FAILED, errors=("x",))
        for way in (lambda: ended(DONE), lambda: ended(failed), expired, cancelled):
            told = desk.queue.webhook(way())
            assert told is not None
            assert (told["state"], told["next_ms"]) == ("pending", desk.clock.ms)

    def test_an_endpoint_is_forgotten_whole(self, desk: Desk) -> None:
        kept = desk.submit(OTHER)
        for n in range(1203):
            desk.submit(**({"key": f"k{n}", "digest": "d", "webhook": Webhook("https://example.com")} if n < 3 else {}))
        (lease,) = desk.take()
        desk.finish(lease)
        desk.queue.forget(E)
        assert desk.queue.find(E) == []
        assert E not in desk.queue.counts()
        assert desk.queue.webhook(lease.id) is None
        assert desk.state(kept, OTHER) is State.QUEUED
        assert not desk.finish(lease)

    def test_any_text_comes_back_as_it_was(self, desk: Desk) -> None:
        request = '{"parameters": {"s": "\\u0000\\ud800 é 漢 😀 \' \\" ; --"}}'
        prediction_id = desk.submit(request=request)
        (lease,) = desk.take()
        assert lease.request == request
        assert desk.finish(lease, Outcome(State.FAILED, errors=("é 漢 \\ ' \"",)))
        found = desk.queue.get(E, prediction_id)
        assert found is not None
        assert found.errors == ("é 漢 \\ ' \"",)

    def test_what_was_accepted_is_there_when_the_database_is_opened_again(
        self, desk: Desk, another: Callable[[], Database]
    ) -> None:
        prediction_id = desk.submit()
        database = another()
        found = Queue(database).get(E, prediction_id)
        database.close()
        assert found is not None

    def test_submissions_and_leases_at_once_lose_and_double_nothing(self, desk: Desk) -> None:
        done: list[str] = []
        sent = threading.Event()

        def submit() -> None:
            for _ in range(25):
                desk.submit()

        def dispatch() -> None:
            while leases := desk.take(4) or not sent.is_set():
                for lease in leases if isinstance(leases, list) else ():
                    assert desk.finish(lease)
                    done.append(lease.id)

        dispatchers = [threading.Thread(target=dispatch) for _ in range(2)]
        for one in dispatchers:
            one.start()
        self.together([submit] * 6)
        sent.set()
        for one in dispatchers:
            one.join()
        assert len(done) == len(set(done)) == 150
        assert desk.queue.depth(E).waiting == 0

    @staticmethod
    def together(works: list[Callable[[], object]]) -> None:
        """Do all at once, and fail when one fails."""
        failed: list[BaseException] = []

        def do(work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=do, args=(work,)) for work in works]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not failed, failed
