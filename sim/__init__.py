"""Peers in worlds we control: the deterministic simulator and the tools that try real clusters."""
