"""Fast paths beside slow ones: ratios of both sides from one run."""
