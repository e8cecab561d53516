"""The outside of a peer, which the simulator replaces: clock, chance, disk, network."""
