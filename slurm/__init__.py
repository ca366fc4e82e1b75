"""The launcher: sends a chain of phases to SLURM, or runs it here. Never imports torch.

submit.py commands.py   the command line
config/                 what is asked for: chains, clusters, settings, sweeps
planning/               checked and worked out, with what is there already and how long it takes
sending/                to submitit: a copy of the code, batch scripts, jobs; sending again
node/                   what a job does: begin an attempt, check and run on every node, settle
watching/               what became of it: status, logs, why
job.py                  one phase as a file: all that passes from here to a node
ledger.py               all that was done for a phase, attempt after attempt
scheduler.py            SLURM's commands
"""
