"""`changefeed conformance -- CMD…`: a scripted server that grades a subscriber written in any language.

    scenarios.py   what is played and what is expected, one function each: read this first
    stage.py       the scripted server of one scenario, and the client under test as a process
    relay.py       a TCP relay between the two that cuts in the middle of a frame, or lets bytes through one by one

What the client under test must do is in docs/reference/conformance.md: it is a program that follows the feed
$CHANGEFEED_FEED at $CHANGEFEED_URL from the beginning, keeps its position in the file $CHANGEFEED_CURSOR, and prints one
JSON line {"seq": N, "id": "…"} for each event that it handles.
"""
