"""Several models under one budget.

Each model runs in a process of its own (``worker``), with a share of the budget by a Plan, so that
what one does leaves the bits of the others alone, and unloading gives everything back. In front of
them one process has the port (``front``): it checks who calls, reads which model is asked for, and
passes the request and the answer on as they are.

1. ``entries`` knows names: of the command line, a folder, a TOML file, and those made at run time.
2. ``helper`` reads headers in a process that ends: what a model is, and a *curve* of budgets with
   the seconds that an ordinary answer takes in each, by Plans.
3. ``allotment`` is pure: shares for those that are to be there, so that the expected seconds of
   answers are the least, weighted by how often each was asked lately; not to be there costs what
   loading takes.
4. ``fleet`` executes that: it shrinks (the live budget, between two steps), unloads those without a
   request, loads, and forgets what was not asked for ``keep_alive``. One change at a time; whoever
   asks for a model that is there does not wait for it.
5. The ledger has the front and a share for each process; a share is entered before its process is
   started, and given back once it has ended. A process keeps to its share by a ledger of its own.
6. Who waits for a model has its place; streams show meanwhile that they live, and how far it is.
"""
