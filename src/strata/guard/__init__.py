"""Where what foreign text asks for is done: templates and grammars, in processes that can be ended.

A process of its own, the *nursery*, has the libraries loaded and forks a *ward* for each thing that
is worked on: a chat template, a compiled grammar. A ward has limits of memory and of processor time
for each job, and is ended by itself without a trace in anybody else.
"""
