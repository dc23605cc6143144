"""Between instances: a follower's link to the leader of a feed.

machine.py  decides (pure): what a link's messages mean for window, election and waiting answers
far.py      queues, and the leader that a follower sees (a far leader.Leader)
driver.py   both ends: the follower's (a far Leader, entries for its window, evidence for its election) and the leader's
"""
