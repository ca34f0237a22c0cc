"""Start N ranks of a script, watch them, and leave nothing behind: the command ``tlrun``.

::

    tlrun -n 4 train.py --lr 0.1

    tlrun ── supervisor ─┬─ mpiexec ── N stubs      MPI's wiring, lent to tlrun (stub.py)
     cli        │        ├─ rank 0   (worker.py)    tlrun's own children: exact exit status,
                │        ├─ ...                     own pipes, killed by the kernel with tlrun
                │        └─ rank N-1
            supervisor.py does; job.py decides; output.py prefixes; cleanup.py sweeps

``mpiexec`` starts a stub in place of each rank. The stub hands MPI's variables and its connection
to the process manager over to the supervisor and waits; the supervisor starts the rank itself.
So the end of a rank is learned from the kernel, in order, whatever ``mpiexec`` makes of it.
"""
