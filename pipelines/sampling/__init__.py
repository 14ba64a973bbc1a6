"""Pure draws: which sample, which frames, which crops, as functions of seed, epoch and position."""
