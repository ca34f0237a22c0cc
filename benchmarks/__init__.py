"""Speed and memory side by side with PyTorch, where it is installed.

python -m benchmarks              whole training steps: a table, a JSON and a chart in results/
python -m benchmarks.ops          single operations, forward and with backward: a table
python -m benchmarks.start        import and first step, each in a fresh process
python -m benchmarks.distributed  two ranks beside torch over gloo

Run them in the folder that holds `benchmarks/`. Each library runs in child processes of its own, so
that neither disturbs the other's memory or threads, and only one child runs at any moment:

    parent  -- "run 8 steps" -->  tensorlib   (the others are stopped)
    parent  -- "run 8 steps" -->  torch
    parent  -- "run 8 steps" -->  torch.compile
    parent  -- "run 8 steps" -->  tensorlib   ...

==============  ================================================================================
`__main__`      the suite of training steps: options, then measure and report
`workloads`     what is trained, each written once, for whichever library is handed in
`models`        the networks that the workloads train
`measure`       the same weights, the same losses, then turns
`report`        the table, the JSON and the chart
`start`         seconds to import and to the first step
`ops`           single operations; `op_cases` lists them
`children`      a child process as the parent sees it
`worker`        what runs inside the child
`machine`       what the figures were measured on
`distributed`   several ranks; `ranks` is what each of them runs
==============  ================================================================================
"""
