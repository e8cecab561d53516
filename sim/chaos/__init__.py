"""The chaos runner: clients and faults against a local cluster of real processes, and a model of what was acknowledged.

The peers are known from outside only: their processes, their command line, their HTTP, and the folders they keep. All
choices come from one seed; what real processes make of them differs from run to run, so a failure names the seed and
keeps the evidence.
"""
