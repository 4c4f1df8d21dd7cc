"""Other tools beside ours: same tokens, same evaluator, seconds and memory of quantizing alone.

    python -m tests.benchmarks.peers [--parts quality cost] [--tools ...] [--repeats 3]

Each tool runs in a process and, but for ours, in an environment of its own (environments.py), which
the first run makes. Every run leaves a file below .peers/runs, and what has one is not run again: a
bench that was stopped goes on where it was.
"""
