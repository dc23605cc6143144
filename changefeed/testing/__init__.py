"""Public kit: conformance suites, fakes, strategies. Used by our tests and by the authors of other stores."""
