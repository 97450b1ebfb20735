"""The machine that contributes upwards: a device, and the upper half of an edge.

    OUT -connected-> JOINED -call-> FETCHING -model here-> WORKING -worked-> SENDING -receipt-> JOINED
    a newer call, or the close of this one, in FETCHING, WORKING or SENDING drops what was being done

It answers a call it hears twice with what it said before, so a lost message costs a reminder, never a round.
"""

from __future__ import annotations

from enum import Enum

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.blobs import WINDOW, Cut, Reassembler
from hfl_mqtt.protocol.messages import (
    Decline,
    Info,
    Manifest,
    ModelPart,
    Phase,
    Receipt,
    RoundCall,
    State,
    StateName,
    Update,
    UpdatePart,
    Want,
    WantModel,
    round_text,
)
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.protocol.wire import pack_update
from hfl_mqtt.rounds import cohort
from hfl_mqtt.rounds.actions import Action, CancelWork, Contribution, RunOver, Send, Work, note

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
    """

    def __init__(self, *, path: str, boot: int, info: Info, max_model: int) -> None:
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
        self._models = Reassembler(max_blob=max_model, max_total=2 * max_model, per_sender=2, window=None)
        self._model: tuple[str, bytes] | None = None
        self._upload: Cut | None = None
        self._probe_at_s: float | None = None
        self._probe_wait_s = PROBE_S
        self._sent_s = 0.0
        self._probes = 0
        self._is_linked = True
        self._announce_at_s: float | None = None
        self._announce_wait_s = ANNOUNCE_S

    # -------------------------------------------------------------- link

    def connected(self, now: float) -> list[Action]:
        """Announce ourselves; an upload that has no receipt goes on."""
        if self.stage is Stage.OUT:
            self.stage = Stage.JOINED
        self._announce_at_s, self._announce_wait_s = now + ANNOUNCE_S, ANNOUNCE_S
        self._is_linked, self._probes = True, 0
        if self._probe_at_s is not None or self.stage is Stage.SENDING:
            self._probe_at_s, self._probe_wait_s = now, PROBE_S
        return [Send(message=self._info), self._state(self._state_name)]

    def lost(self) -> None:
        """Ask and probe no more until the link is back: it would all wait in line and go out at once."""
        self._is_linked = False

    # -------------------------------------------------------------- from the parent

    def hear(self, message: RoundCall | ModelPart | Receipt | Want, now: float) -> list[Action]:
        """Take a message of the parent."""
        if isinstance(message, RoundCall):
            return self._hear_call(message, now)
        if isinstance(message, ModelPart):
            return self._hear_part(message, now)
        if isinstance(message, Receipt):
            return self._hear_receipt(message)
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
            return self._drop(f"{round_text(call.round)} closed")
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
        if self._model is not None and self._model[0] == call.model.blob:
            return self._work(self._model[1])
        if call.model.size > self._models.max_blob:
            return self._say_decline(
                f"the model has {call.model.size} bytes, this node takes {self._models.max_blob}: raise max_model"
            )
        self._probe_at_s, self._probe_wait_s = now + PROBE_S, PROBE_S
        return []

    def _repeat(self, now: float) -> list[Action]:
        """Answer a call heard again with what was said before: the parent may have missed it."""
        if self._decline is not None:
            return [Send(message=self._decline)]
        self._probes = 0
        if self.stage is Stage.SENDING:
            # A probe is a whole part: it must not stand in the way of those that are still under way.
            earliest_s = max(self._sent_s + PATIENCE_S, now)
            self._probe_at_s = earliest_s if self._probe_at_s is None else min(self._probe_at_s, earliest_s)
        elif self._probe_at_s is not None:
            self._probe_at_s = min(self._probe_at_s, now)
        return []

    def _hear_part(self, part: ModelPart, now: float) -> list[Action]:
        if self._model is not None and part.blob == self._model[0]:
            return []
        try:
            progress = self._models.add(self.parent, part, now)
        except Malformed as error:
            if self._is_fetching(part.blob) and not self._models.is_open(self.parent, part.blob):
                self._probe_at_s, self._probe_wait_s = now + PROBE_S, PROBE_S
            return [note("malformed", sender=self.parent, reason=str(error))]
        if progress.blob is None:
            if self._is_fetching(part.blob):
                self._probe_at_s = None  # the reassembler now asks for what is missing
            return []
        self._model = (part.blob, progress.blob)
        if self._is_fetching(part.blob):
            return self._work(progress.blob)
        return []

    def _hear_receipt(self, receipt: Receipt) -> list[Action]:
        call = self._call
        meant = call is not None and (receipt.run, receipt.round, receipt.base) == (
            call.run,
            call.round,
            call.model.digest,
        )
        if self.stage is not Stage.SENDING or call is None or not meant:
            return [note("receipt_out_of_place", round=round_text(receipt.round))]
        self._end_upload()
        self._has_counted = receipt.accepted
        event = "accepted" if receipt.accepted else "refused"
        said = {"run": call.run, "round": round_text(call.round), "kind": call.plan.kind.value}
        return [note(event, **said, reason=receipt.reason)]

    def _hear_want(self, want: Want, now: float) -> list[Action]:
        if self._upload is None or want.blob != self._upload.digest:
            return []
        # On a slow link the next want takes about as long as this one did; a probe before it would stand in its way.
        wait_s = max(PROBE_S, 2 * (now - self._sent_s), self._probe_wait_s / 2)
        self._probe_wait_s = min(wait_s, MAX_PROBE_S)
        self._probe_at_s, self._sent_s, self._probes = now + self._probe_wait_s, now, 0
        return self._send_parts(sorted(index for index in set(want.parts) if index < self._upload.count))

    # -------------------------------------------------------------- from the work

    def worked(self, work_id: str, result: Contribution, now: float) -> list[Action]:
        """Take the result of the work and send it."""
        call = self._call
        if self.stage is not Stage.WORKING or call is None or work_id != self._work_id(call):
            return []
        update = Update(
            run=call.run,
            round=call.round,
            sender=self.path,
            base=call.model.digest,
            weight=result.weight,
            payload=result.payload,
            tallies=result.tallies,
        )
        self._upload = Cut.of(pack_update(update))
        self.stage = Stage.SENDING
        self._probe_at_s, self._probe_wait_s, self._sent_s = now + PROBE_S, PROBE_S, now
        self._probes = 0
        sent = self._send_parts(range(min(WINDOW, self._upload.count)))
        return [*sent, self._state(StateName.READY)]

    def failed(self, work_id: str, reason: str) -> list[Action]:
        """Take it that the work gave nothing."""
        call = self._call
        if self.stage is not Stage.WORKING or call is None or work_id != self._work_id(call):
            return []
        return [*self._say_decline(reason), self._state(StateName.READY)]

    # -------------------------------------------------------------- time

    def tick(self, now: float) -> list[Action]:
        """Ask again, or probe, where nothing has come for long enough."""
        if not self._is_linked:
            return []
        # A model that nobody called for yet is kept, and not asked for: its call stands in line behind it.
        actions: list[Action] = [
            Send(message=WantModel(blob=ask.blob, parts=ask.parts))
            for ask in self._models.tick(now)
            if self._is_fetching(ask.blob)
        ]
        wanted = self._call.model.blob if self._call is not None else ""
        if self._probe_at_s is None and self._is_fetching(wanted) and not self._models.is_open(self.parent, wanted):
            self._probe_at_s, self._probe_wait_s = now, PROBE_S  # it grew too old; begin again
        if self._announce_at_s is not None and now >= self._announce_at_s:
            self._announce_wait_s = min(self._announce_wait_s * 2, MAX_ANNOUNCE_S)
            self._announce_at_s = now + self._announce_wait_s
            actions.append(self._state(self._state_name))
        if self._probe_at_s is None or now < self._probe_at_s:
            return actions
        self._probe_wait_s = min(self._probe_wait_s * 2, MAX_PROBE_S)
        self._probe_at_s = now + self._probe_wait_s
        if self.stage is Stage.FETCHING and self._call is not None:
            manifest: Manifest = self._call.model
            parts = self._models.missing(self.parent, manifest.blob) or tuple(range(min(manifest.parts, WINDOW)))
            actions.append(Send(message=WantModel(blob=manifest.blob, parts=parts)))
        elif self.stage is Stage.SENDING and self._probes < MAX_PROBES:
            self._probes += 1
            actions += self._send_parts([0])
        else:
            self._probe_at_s = None
        return actions

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        if not self._is_linked:
            return None
        moments = (self._probe_at_s, self._announce_at_s, self._models.next_deadline)
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def call(self) -> RoundCall | None:
        """The call last heard."""
        return self._call

    # -------------------------------------------------------------- inside

    def _work(self, model: bytes) -> list[Action]:
        call = self._call
        assert call is not None
        self.stage = Stage.WORKING
        self._probe_at_s = None
        work = Work(
            work_id=self._work_id(call),
            run=call.run,
            round=call.round,
            plan=call.plan,
            codec=call.codec,
            model=model,
            digest=call.model.digest,
            seed=cohort.lot(call.plan.seed, call.round, self.path),
        )
        return [self._state(StateName.TRAINING), work]

    def _drop(self, why: str) -> list[Action]:
        call, stage = self._call, self.stage
        if stage not in _BUSY or call is None:
            return []
        self._end_upload()
        where = {"run": call.run, "round": round_text(call.round)}
        if stage is Stage.WORKING:
            cancel = CancelWork(work_id=self._work_id(call))
            return [cancel, self._state(StateName.READY), note("cancelled", **where, reason=why)]
        return [note("given_up", **where, reason=why, stage=stage.value)]

    def _end_upload(self) -> None:
        self.stage = Stage.JOINED
        self._upload = self._probe_at_s = None

    def _remember(self, run: str) -> None:
        self._past_runs = [*self._past_runs, run][-PAST_RUNS:]

    def _end_run(self, run: str) -> None:
        self._remember(run)
        self._call = self._decline = None
        self._models.clear()

    def _say_decline(self, reason: str) -> list[Action]:
        call = self._call
        assert call is not None
        self._end_upload()
        self._decline = Decline(run=call.run, round=call.round, reason=reason[:300])
        declined = note("declined", run=call.run, round=round_text(call.round), reason=reason)
        return [Send(message=self._decline), declined]

    def _send_parts(self, indices: range | list[int]) -> list[Action]:
        call, upload = self._call, self._upload
        assert call is not None
        assert upload is not None
        return [
            Send(
                message=UpdatePart(
                    run=call.run,
                    round=call.round,
                    base=call.model.digest,
                    blob=upload.digest,
                    index=index,
                    count=upload.count,
                    size=len(upload.blob),
                    data=upload.part(index),
                )
            )
            for index in indices
        ]

    def _is_fetching(self, blob: str) -> bool:
        return self.stage is Stage.FETCHING and self._call is not None and self._call.model.blob == blob

    @staticmethod
    def _work_id(call: RoundCall) -> str:
        return f"{call.run}/{round_text(call.round)}"

    @property
    def _state_name(self) -> StateName:
        return StateName.TRAINING if self.stage is Stage.WORKING else StateName.READY

    def _state(self, state: StateName) -> Send:
        return Send(message=State(state=state, boot=self._boot))
