"""Messages, their two encodings, limits and close codes. Pure: bytes in, values out.

messages.py  every message as a frozen value (the vocabulary)
values.py    bodies and metas: JSON values, bytes and 64-bit integers <-> canonical msgpack; their JSON form
changes.py   one change <-> its canonical msgpack bytes; runs of changes; JSON forms of changes and events
kinds.py     what a part of a message may be: reading, writing, schema
tables.py    which parts each message has
codec.py     messages <-> msgpack or JSON text, with every check of what a peer may send
frames.py    entries -> the runs of an events message, cut out without re-encoding; and back to events
faults.py    errors <-> faults, refused answers and close codes
schema.py    a JSON Schema of each message, from which docs/reference/schema/ is written
"""

MSGPACK = "changefeed.v1.msgpack"
JSON = "changefeed.v1.json"
#: In order of preference.
SUBPROTOCOLS = (MSGPACK, JSON)
#: Between instances; not for strangers: it may change with each release.
PEER = "changefeed.v1.peer"
