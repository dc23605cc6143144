"""For all tests: hypothesis has no deadline per example. How fast a shared machine is says nothing about us."""

from hypothesis import settings

settings.register_profile("changefeed", deadline=None)
settings.load_profile("changefeed")
