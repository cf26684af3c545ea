"""Years of billing in seconds, with everything going wrong that can, out of one seed. `billing simulate`.

The whole system in one process: the services, the store on a real PostgreSQL, Xendit's client and the simulator are
the real ones. Processes are simulated (stage.py), so that every seed can be played again, step by step.

    play.py      one world and its year       stage.py   processes, tasks, pauses; death at any of them
    fate.py      what goes wrong              line.py    the line to Xendit, and what must never travel on it
    people.py    subscribers and operators    guards.py  what no commit may do, as triggers
    oracle.py    what should have happened    runner.py  many seeds, on all cores

After every step the safety rules are checked (guards.py at each commit, line.py at each charge); at the end of the
year, when nothing has gone wrong for months, liveness (oracle.py): every period billed, skipped or ended on purpose.
"""
