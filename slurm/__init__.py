"""The launcher: sends a chain of phases to SLURM, or runs it here. Never imports torch.

submit.py    the command line
chain.py     what is run, in which order          configs/chains/
cluster.py   on what, for how long                configs/clusters/
plan.py      both, checked and worked out: the one thing that every command starts from
jobs.py      one phase as a file, and what a node does with it
sending.py   plan to submitit
showing.py   plans and tables as text
watching.py  what became of it
"""
