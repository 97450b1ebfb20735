"""The machine that contributes upwards: a device, and the upper half of an edge.

    OUT -connected-> JOINED -call-> FETCHING -model here-> WORKING -worked-> SENDING -receipt-> JOINED
    a newer call, or the close of this one, in FETCHING, WORKING or SENDING drops what was being done

It answers a call it hears twice with what it said before, so a lost message costs a reminder, never a round.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from hfl_mqtt.protocol.blobs import WINDOW, Cut, Keep, in_memory, part_length
from hfl_mqtt.protocol.messages import (
    AUTO,
    MOVING_EVERY_S,
    Announce,
    Decline,
    Info,
    KeyPart,
    Kind,
    ModelPart,
    Moving,
    Phase,
    Receipt,
    RoundCall,
    State,
    StateName,
    Update,
    UpdatePart,
    Want,
    round_text,
)
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.protocol.wire import update_pieces
from hfl_mqtt.rounds import cohort, ladder
from hfl_mqtt.rounds.actions import Action, CancelWork, Contribution, Counted, RunOver, Send, Work, note
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.following import Following

#: Work that is done sooner is not told of: the state that people see would only flicker, and every message costs.
TELL_S = 5.0
#: A node that has heard nothing of its parent says again that it is there.
ANNOUNCE_S = 15.0
MAX_ANNOUNCE_S = 300.0
PROBE_S = 5.0
MAX_PROBE_S = 60.0
#: A reminder is answered with a probe once this long has passed since parts were sent.
PATIENCE_S = 30.0
#: A probe is a whole part: after so many without an answer, the parent's next call is waited for.
MAX_PROBES = 10
#: Runs that ended and are remembered, so that a late call of theirs is not taken for a new run.
PAST_RUNS = 8


#: What a participant hears of its parent.
FromParent = RoundCall | ModelPart | KeyPart | Receipt | Want


class Stage(Enum):
    """Where a participant stands."""

    OUT = "out"
    JOINED = "joined"
    FETCHING = "fetching"
    WORKING = "working"
    SENDING = "sending"


_BUSY = (Stage.FETCHING, Stage.WORKING, Stage.SENDING)


class Participant:
    """Takes calls from its parent and answers each with one update or one decline.

    Args:
        path: this node's name; its parent is the path above.
        boot: how often this node has been started; goes into its state.
        info: what it says of itself at birth.
        max_model: most bytes of a model it will take.
        keep: puts blobs away.
    """

    def __init__(self, *, path: str, boot: int, info: Info, max_model: int, keep: Keep = in_memory) -> None:
        above = parent(path)
        if above is None:
            raise ValueError(f"{path!r} has no parent to contribute to")
        self.path, self.parent = path, above
        self.stage = Stage.OUT
        self._boot, self._info = boot, info
        self._call: RoundCall | None = None
        self._decline: Decline | None = None
        self._has_counted = False
        self._past_runs: list[str] = []
        self._keep = keep
        self.following = Following(max_model, keep)
        self._upload: Cut | None = None
        self._is_announced = False
        #: Parts up to the last one sent: the parent asks for them in order.
        self._parts_sent = 0
        #: The work whose result was sent last, while nothing newer was begun: its receipt may come after the next call.
        self._unreceipted: str | None = None
        self._probe_at_s: float | None = None
        self._probe_wait_s = PROBE_S
        self._sent_s = 0.0
        self._probes = 0
        self._is_linked = True
        self._announce_at_s: float | None = None
        self._announce_wait_s = ANNOUNCE_S
        self._told = StateName.READY
        self._tell_at_s: float | None = None
        self._began_s = 0.0
        #: Bytes sent and received so far, as the shell counts them, and what of them has been reported upwards.
        self.meter: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._reported = self._to_report = (0, 0)
        #: Since when parts keep coming from or at the children of this node, where it has any.
        self.moving_below_since: Callable[[float], float | None] = lambda _now: None
        self._moving_s: float | None = None
        #: Bytes per second that the last upload got through; None before the first.
        self.goodput: float | None = None
        #: How updates are coded now, and why, where that is this node's choice.
        self.choice: ladder.Choice | None = None

    # -------------------------------------------------------------- link

    def connected(self, now: float) -> list[Action]:
        """Announce ourselves; an upload that has no receipt goes on."""
        if self.stage is Stage.OUT:
            self.stage = Stage.JOINED
        self._announce_at_s, self._announce_wait_s = now + ANNOUNCE_S, ANNOUNCE_S
        self._is_linked, self._probes = True, 0
        if self._probe_at_s is not None or self.stage is Stage.SENDING:
            self._probe_at_s, self._probe_wait_s = now, PROBE_S
        self._told = self._state_name
        hello: list[Action] = [Send(message=self._info), self._state(self._told)]
        if self.stage is Stage.FETCHING and self._call is not None:  # what was fetched went with the connection
            hello += self.following.want(self._call.run, self._call.model, now)
        return hello

    def lost(self) -> None:
        """Ask and probe no more until the link is back: it would all wait in line and go out at once."""
        self._is_linked = False

    # -------------------------------------------------------------- from the parent

    def hear(self, message: FromParent, now: float) -> list[Action]:
        """Take a message of the parent."""
        if isinstance(message, RoundCall):
            return self._hear_call(message, now)
        if isinstance(message, ModelPart | KeyPart):
            if message.size > self.following.max_blob and self.stage is Stage.FETCHING:
                return self._say_decline(self._too_large(message.size))
            return self.following.hear(message, now) + self._work_if_here(now)
        if isinstance(message, Receipt):
            return self._hear_receipt(message, now)
        return self._hear_want(message, now)

    def _hear_call(self, call: RoundCall, now: float) -> list[Action]:
        if call.run in self._past_runs:
            return []
        known = self._call
        if call.phase is Phase.FINISHED:
            if known is None or call.run != known.run:
                self._remember(call.run)  # an earlier run, still on the retained topic: not ours to end
                return []
            actions = self._drop("the run is over")
            self._end_run(call.run)
            return [*actions, RunOver(run=call.run)]
        if known is None or call.run != known.run:
            actions = self._drop("a new run began")
            if known is not None:
                self._end_run(known.run)
            return actions + self._begin(call, now)
        if call.boot != known.boot and self._is_doing(call):
            self._call = call  # it was restarted, and asks for what is being done already
            return self._repeat(now)
        if call.boot != known.boot:
            # It was restarted and knows nothing of what we said: its rounds count anew.
            return self._drop("the aggregator was restarted") + self._begin(call, now)
        if call.round < known.round:
            return []
        if call.round > known.round:
            return self._drop(f"{round_text(call.round)} began") + self._begin(call, now)
        if call.phase is Phase.CLOSED:
            dropped = self._drop(f"{round_text(call.round)} closed")
            self._call, self._has_counted = call, False  # an edge that missed it may open it once more
            return dropped
        if call.attempt > known.attempt and self.stage is Stage.JOINED and not self._has_counted:
            return self._begin(call, now)
        return self._repeat(now)

    def _is_doing(self, call: RoundCall) -> bool:
        known = self._call
        asks_the_same = known is not None and (known.round, known.model.digest) == (call.round, call.model.digest)
        return asks_the_same and call.phase is Phase.OPEN and self.stage in _BUSY

    def _begin(self, call: RoundCall, now: float) -> list[Action]:
        self._call, self._decline, self._has_counted = call, None, False
        if call.phase is not Phase.OPEN:
            return []
        self._announce_at_s = None  # the parent works with those it knows; our answer will tell it of us
        if not cohort.is_asked(call.draw, call.round, self.path):
            return [note("not_asked", run=call.run, round=round_text(call.round))]
        self.stage = Stage.FETCHING
        return self.following.want(call.run, call.model, now) + self._work_if_here(now)

    def _repeat(self, now: float) -> list[Action]:
        """Answer a call heard again with what was said before: the parent may have missed it."""
        if self._decline is not None:
            return [Send(message=self._decline)]
        self._probes = 0
        if self.stage is Stage.SENDING:
            # A probe is a whole part: it must not stand in the way of those that are still under way.
            earliest_s = max(self._sent_s + PATIENCE_S, now)
            self._probe_at_s = earliest_s if self._probe_at_s is None else min(self._probe_at_s, earliest_s)
        return []

    def _hear_receipt(self, receipt: Receipt, now: float) -> list[Action]:
        call = self._call
        meant = call is not None and (receipt.run, receipt.round, receipt.base) == (
            call.run,
            call.round,
            call.model.digest[:16],
        )
        if self.stage is not Stage.SENDING or call is None or not meant:
            late = note("receipt_out_of_place", round=round_text(receipt.round))
            work_id = self._unreceipted
            if work_id is None or work_id != f"{receipt.run}/{round_text(receipt.round)}":
                return [late]
            self._unreceipted = None
            return [Counted(work_id=work_id), late] if receipt.accepted else [late]
        self._unreceipted = None  # a receipt that comes twice counts once
        if self._upload is not None:
            self.goodput = self._upload.size / max(now - self._began_s, 1e-3)
        self._end_upload()
        self._has_counted = receipt.accepted
        event = "accepted" if receipt.accepted else "refused"
        said = {"run": call.run, "round": round_text(call.round), "kind": call.plan.kind.value}
        told = note(event, **said, reason=receipt.reason)
        if not receipt.accepted:
            return [told]
        self._reported = self._to_report
        if call.plan.kind is not Kind.TRAIN:  # nothing was coded
            return [told]
        return [Counted(work_id=self._work_id(call)), told]

    def _hear_want(self, want: Want, now: float) -> list[Action]:
        if self._upload is None or want.blob != self._upload.digest:
            return []
        # On a slow link the next want takes about as long as this one did; a probe before it would stand in its way.
        wait_s = max(PROBE_S, 2 * (now - self._sent_s), self._probe_wait_s / 2)
        self._probe_wait_s = min(wait_s, MAX_PROBE_S)
        self._probe_at_s, self._sent_s, self._probes = now + self._probe_wait_s, now, 0
        if self._is_announced:
            self._is_announced, self._began_s = False, now
        return self._send_parts(sorted(index for index in set(want.parts) if index < self._upload.count))

    # -------------------------------------------------------------- from the work

    def worked(self, work_id: str, result: Contribution, now: float) -> list[Action]:
        """Take the result of the work and send it."""
        call = self._call
        if self.stage is not Stage.WORKING or call is None or work_id != self._work_id(call):
            return []
        if result.keyframe is not None and self.following.chain is not None:
            self.following.chain.rebase(result.keyframe)
        self._to_report = self.meter()
        update = Update(
            weight=result.weight,
            payload=result.payload,
            tallies=result.tallies,
            sent=result.sent + self._to_report[0] - self._reported[0],
            received=result.received + self._to_report[1] - self._reported[1],
        )
        self._upload = Cut.kept(update_pieces(update), self._keep)
        self._unreceipted = work_id if call.plan.kind is Kind.TRAIN else None  # else nothing was coded
        self.stage, self._parts_sent = Stage.SENDING, 0
        self._probe_at_s, self._probe_wait_s, self._sent_s = now + PROBE_S, PROBE_S, now
        self._probes, self._began_s = 0, now
        self._is_announced = self._upload.size > call.unasked
        sent = self._announce() if self._is_announced else self._send_parts(range(min(WINDOW, self._upload.count)))
        worked = note(
            "worked",
            run=call.run,
            round=round_text(call.round),
            kind=call.plan.kind.value,
            seconds=round(result.seconds, 4),
            bytes=len(result.payload),
            **({"codec": self.choice.codec, "reason": self.choice.reason} if self.choice is not None else {}),
        )
        return [*sent, worked, *self._tell()]

    def failed(self, work_id: str, reason: str) -> list[Action]:
        """Take it that the work gave nothing."""
        call = self._call
        if self.stage is not Stage.WORKING or call is None or work_id != self._work_id(call):
            return []
        return [*self._say_decline(reason), *self._tell()]

    # -------------------------------------------------------------- time

    def tick(self, now: float) -> list[Action]:
        """Ask again, or probe, where nothing has come for long enough."""
        if not self._is_linked:
            return []
        actions = self.following.tick(now)
        if self._tell_at_s is not None and now >= self._tell_at_s:
            self._tell_at_s = None
            actions += self._tell()
        if self._announce_at_s is not None and now >= self._announce_at_s:
            self._announce_wait_s = min(self._announce_wait_s * 2, MAX_ANNOUNCE_S)
            self._announce_at_s = now + self._announce_wait_s
            actions.append(self._state(self._state_name))
        if self._probe_at_s is None or now < self._probe_at_s:
            return actions
        self._probe_wait_s = min(self._probe_wait_s * 2, MAX_PROBE_S)
        self._probe_at_s = now + self._probe_wait_s
        if self.stage is Stage.SENDING and self._is_announced:
            actions += self._announce()
        elif self.stage is Stage.SENDING and self._probes < MAX_PROBES:
            self._probes += 1
            actions += self._send_parts([0])
        else:
            self._probe_at_s = None
        return actions

    def watch(self, now: float) -> list[Action]:
        """Tell the parent that parts keep coming, once they have for long; to be called after every event."""
        since_s = None  # while an update is sent, the parent sees its parts
        if self.stage is Stage.WORKING:
            since_s = self.moving_below_since(now)
        elif self.stage is not Stage.SENDING:
            since_s = self.following.arriving_since(now)
        if since_s is None or not self._is_linked:
            self._moving_s = None
            return []
        if self._moving_s is None:
            self._moving_s = since_s
        if now < self._moving_s + MOVING_EVERY_S:
            return []
        self._moving_s = now
        return [Send(message=Moving())]

    def fetch_anew(self, now: float) -> list[Action]:
        """Fetch the model that is being worked on from its keyframe, and begin the work anew with what comes."""
        call = self._call
        assert call is not None
        assert self.stage is Stage.WORKING
        self.stage, self._tell_at_s = Stage.FETCHING, None
        self.following.forget()
        return self.following.want(call.run, call.model, now)

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        if not self._is_linked:
            return None
        moving_s = self._moving_s + MOVING_EVERY_S if self._moving_s is not None else None
        moments = (self._probe_at_s, self._announce_at_s, self._tell_at_s, moving_s, self.following.next_deadline)
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def is_moving(self) -> bool:
        """Whether a model is on its way here, or an update on its way up."""
        return self._is_linked and self.stage in (Stage.FETCHING, Stage.SENDING)

    @property
    def received(self) -> tuple[int, int] | None:
        """How many bytes of a model that is on its way here have come, and all of them; None where none is."""
        return self.following.progress() if self.stage is Stage.FETCHING else None

    @property
    def sent(self) -> tuple[int, int] | None:
        """How many bytes of an update that is on its way up were asked for and sent, and all; None where none is."""
        upload = self._upload
        if upload is None:
            return None
        return min(self._parts_sent * part_length(upload.size, upload.count), upload.size), upload.size

    @property
    def call(self) -> RoundCall | None:
        """The call last heard."""
        return self._call

    # -------------------------------------------------------------- inside

    @property
    def chain(self) -> Chain | None:
        """The parent's model as far as it is known."""
        return self.following.chain

    def _work_if_here(self, now: float) -> list[Action]:
        call, chain = self._call, self.following.chain
        if self.stage is not Stage.FETCHING or call is None or chain is None or not self.following.has_arrived:
            return []
        if chain.keyframe.size > self.following.max_model:
            return self._say_decline(self._too_large(chain.keyframe.size))
        self.stage, self._unreceipted = Stage.WORKING, None
        self.following.rest()
        self._probe_at_s, self._tell_at_s = None, now + TELL_S
        codec = call.codec
        if codec == AUTO:
            self.choice = ladder.choose(chain.keyframe.size, self.goodput, call.budget)
            codec = self.choice.codec
        work = Work(
            work_id=self._work_id(call),
            run=call.run,
            round=call.round,
            plan=call.plan,
            codec=codec,
            model=chain.model,
            seed=cohort.lot(call.plan.seed, call.round, self.path),
        )
        return [work]

    def _drop(self, why: str) -> list[Action]:
        call, stage = self._call, self.stage
        if stage not in _BUSY or call is None:
            return []
        self._end_upload()
        where = {"run": call.run, "round": round_text(call.round)}
        if stage is Stage.WORKING:
            cancel = CancelWork(work_id=self._work_id(call))
            return [cancel, *self._tell(), note("cancelled", **where, reason=why)]
        return [note("given_up", **where, reason=why, stage=stage.value)]

    def _end_upload(self) -> None:
        self.stage = Stage.JOINED
        self._upload = self._probe_at_s = None
        self.following.rest()

    def _remember(self, run: str) -> None:
        self._past_runs = [*self._past_runs, run][-PAST_RUNS:]

    def _end_run(self, run: str) -> None:
        self._remember(run)
        self._call = self._decline = None
        self.following.forget()

    def _say_decline(self, reason: str) -> list[Action]:
        call = self._call
        assert call is not None
        self._end_upload()
        self._decline = Decline(run=call.run, round=call.round, reason=reason[:300])
        declined = note("declined", run=call.run, round=round_text(call.round), reason=reason)
        return [Send(message=self._decline), declined]

    def _too_large(self, size: int) -> str:
        return f"the model has {size} bytes, this node takes {self.following.max_model}: raise max_model"

    def _send_parts(self, indices: range | list[int]) -> list[Action]:
        call, upload = self._call, self._upload
        assert call is not None
        assert upload is not None
        self._parts_sent = max([self._parts_sent, *(index + 1 for index in indices)])
        return [
            Send(
                message=UpdatePart(
                    run=call.run,
                    round=call.round,
                    base=call.model.digest,
                    blob=upload.digest,
                    index=index,
                    count=upload.count,
                    size=upload.size,
                    data=upload.part(index),
                )
            )
            for index in indices
        ]

    def _announce(self) -> list[Action]:
        call, upload = self._call, self._upload
        assert call is not None
        assert upload is not None
        announced = Announce(
            run=call.run,
            round=call.round,
            base=call.model.digest[:16],
            blob=upload.digest,
            size=upload.size,
            count=upload.count,
        )
        return [Send(message=announced)]

    def _tell(self) -> list[Action]:
        """Say our state where it is another than the last one said."""
        if self.stage is not Stage.WORKING:
            self._tell_at_s = None
        if self._told is self._state_name:
            return []
        self._told = self._state_name
        return [self._state(self._told)]

    @staticmethod
    def _work_id(call: RoundCall) -> str:
        return f"{call.run}/{round_text(call.round)}"

    @property
    def _state_name(self) -> StateName:
        return StateName.TRAINING if self.stage is Stage.WORKING else StateName.READY

    def _state(self, state: StateName) -> Send:
        return Send(message=State(state=state, boot=self._boot))
