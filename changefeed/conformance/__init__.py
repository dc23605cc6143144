"""`changefeed conformance -- CMD…`: a scripted server that grades a subscriber written in any language.

    scenarios.py   the list of what is played
    events.py      scenarios of events, positions, ranges and heartbeats: read this first
    connections.py scenarios of connections and how they end
    stage.py       the scripted server of one scenario, and what can be expected of the client
    client.py      the client under test as a process
    relay.py       a TCP relay between the two, which does what networks and crashes do
    frames.py      the feed that is played
    grading.py     plays scenarios, several at the same time

What the program under test must do is in docs/reference/conformance.md: it follows the feed $CHANGEFEED_FEED at
$CHANGEFEED_URL from the beginning, keeps its position in the file $CHANGEFEED_CURSOR, and prints one JSON line
{"seq": N, "id": "…"} for each event that it handles.
"""
