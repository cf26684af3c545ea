"""The outside world: the one place that knows Xendit's field names, and the simulator that stands in for it."""
