"""The demo: a real git history through a cluster whose leader is killed again and again, and a verdict on what arrived.

history.py     file changes of a git repository, or of a made-up one; who publishes which; the tree that must come out
records.py     JSON lines that survive SIGKILL, and gauges that another process can read
publisher.py   a process: writes down what it will send, sends it, writes down each receipt
subscriber.py  a process: writes down each event that it handled, rebuilds the tree
cluster.py     instances, publishers, subscribers as processes; the leader killed and started again
show.py        what happens, live, and the verdict for people
verdict.py     lost, repeated, reordered, torn: from the files alone, with the standard library alone
"""
