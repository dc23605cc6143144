"""changefeed: a multi-publisher changefeed broker with leader election; nothing lost or repeated under failover."""
