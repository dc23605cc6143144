"""Messages, their two encodings, limits and close codes. Pure: bytes in, values out.

messages.py  every message as a frozen value (the vocabulary)
changes.py   one change <-> its canonical msgpack bytes; bodies; JSON forms of changes and events
codec.py     messages <-> msgpack or JSON text, with every check of what a peer may send
frames.py    entries -> the runs of an events message, cut out without re-encoding; and back to events
schema.py    a JSON Schema of each message, from which docs/reference/schema/ is written
"""

MSGPACK = "changefeed.v1.msgpack"
JSON = "changefeed.v1.json"
#: In order of preference.
SUBPROTOCOLS = (MSGPACK, JSON)
#: Between instances; not for strangers: it may change with each release.
PEER = "changefeed.v1.peer"
