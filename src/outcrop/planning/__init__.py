"""What traffic would need and cost: traces, the five numbers of a copy, the simulator on the live policy, prices.

Pure but for the reading of files. ``serving.policy`` decides here as it does in the server; nothing here talks to one.
"""
