"""Billing runs: the tick that finds what is due and hands it out, a run that is asked for, how runs are controlled,
limited, forecast and reported."""
