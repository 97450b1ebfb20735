"""Every bound of what comes from the network or out of a bundle, in one place; `docs/limits.md` says what each is for.

Whatever a peer declares is checked against these before anything is allocated for it. They are part of the protocol:
both sides keep to the same. What an operator may choose stands in YAML (`limits:`), with defaults in
`rounds.conduct.Bounds`.
"""

from __future__ import annotations

# ------------------------------------------------------------------ names

#: Segments of a node's name: the depth of a tree.
MAX_DEPTH = 8
#: Characters of a node's name.
MAX_PATH = 200

# ------------------------------------------------------------------ messages for people (JSON)

#: Bytes of a JSON message, both ways; MQTT Explorer cuts at 20,000.
MAX_JSON = 16_000
#: Characters of a reason or another text that people read.
MAX_REASON = 300
#: Characters of a name that is no node's: of a metric, a task, a holder of a lease.
MAX_LABEL = 64
#: Figures in one message of metrics.
MAX_METRICS = 64
#: Characters of a chain's canonical text.
MAX_CODEC = 120
#: Codecs in one chain: each costs a receiver a pass, and a stranger may ask for many.
MAX_STAGES = 8
#: Names in one list of those in quarantine; more are not shown, but are in quarantine all the same.
MAX_SHUNNED = 32

# ------------------------------------------------------------------ parts and blobs (msgpack)

#: Bytes of payload in one part; larger packets stall bridges on slow links.
PART_SIZE = 256 * 1024
#: Parts of one blob.
MAX_PARTS = 4096
#: Bytes of one blob: an update, a delta or a keyframe.
MAX_BLOB = PART_SIZE * MAX_PARTS
#: A part and its envelope.
MAX_BINARY = PART_SIZE + 4096
#: The map that stands before the bytes of an update or a keyframe.
MAX_HEAD = 64 * 1024
#: Lists and maps in one binary envelope; an update of 16 metrics has 19.
MAX_CONTAINERS = 64
#: Bytes of one text in a binary envelope.
MAX_TEXT = 1024
#: Parts under way at a time; the receiver tops up when half of them have arrived.
WINDOW = 4
#: Parts asked for in one message.
MAX_ASK = 64
#: Bytes of an update that are sent unasked, unless the call says less.
UNASKED = 4 * PART_SIZE
#: Updates that are put together at the same time may have this many bytes; the others wait for a slot.
MAX_UNDER_WAY = 64 * 2**20
#: Seconds without progress after which a blob that is not complete is dropped.
EXPIRE_S = 600.0
#: An update that was changed on its way is asked for again, so often from each child and round.
MAX_CORRUPTED = 3
#: Deltas after a keyframe.
MAX_FRAMES = 4096

# ------------------------------------------------------------------ what an update says

#: Samples behind one update, and behind all of a round.
MAX_WEIGHT = 2**40
#: So many children's updates of a round always fit together: each may have that part of `MAX_WEIGHT`.
MIN_SHARERS = 1024
#: Bytes that an update may say were moved for it: so many times the largest update and the model, for each child that
#: may be below. It stands for all that came to nothing before; what is said beyond it is not counted.
MAX_MOVED = 64
#: What a metric adds up to; a million of them are still a float.
MAX_TOTAL = 1e300
#: Metrics of one update, and of a round.
MAX_TALLIES = 16

# ------------------------------------------------------------------ weights

#: Tensors of one model, characters of a tensor's name, and its dimensions.
MAX_TENSORS = 10_000
MAX_TENSOR_NAME = 200
MAX_DIMENSIONS = 8
#: Bytes of a table of names and shapes before it is packed.
MAX_TABLE = 1 << 20
#: The widest window of a Zstandard frame, what level 19 writes: it may ask its reader for more memory than it has.
MAX_WINDOW = 1 << 23
#: Bytes of a model that a node takes unless it is told otherwise.
MAX_MODEL = 2**30

# ------------------------------------------------------------------ pace

#: Messages of QoS 1 that a broker may leave with an aggregator before it has dealt with one.
RECEIVE_MAXIMUM = 20
#: Messages of one sender at QoS 0 that may wait for a node; the newest that come then are dropped.
MAX_WAITING = 64
#: A child whose parts come slower than this does not hold others up: 64 kbit/s, in bytes a second.
SLOWEST_LINK = 8_000
#: However small the model: for so many seconds a child may hold a round open, or a slot that others wait for.
HOLD_S = 600.0
SLOT_S = 60.0

# ------------------------------------------------------------------ papers

#: Characters of a card, and of a list of revoked ones.
MAX_CARD = 1000
MAX_REVOKED = 1_000_000
#: Serials that a list can hold: each takes 23 bytes, and base64url makes four characters of three.
MAX_SERIALS = 32_000
#: Bytes of one file in a bundle.
MAX_BUNDLE_FILE = 1_000_000
