"""Asynchronous predictions that are accepted, and not lost: a queue in SQLite, or in PostgreSQL.

A prediction is *queued*, then *leased* to a dispatcher, which has a replica run it and stores the answer. A lease
carries a *fence*, a number that grows with each lease of a prediction: an answer that comes with an older one changes
nothing. Accepted means on disk: `Database.write` returns when the transaction is committed with an fsync.
"""
