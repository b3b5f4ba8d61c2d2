"""Second stage: P-MIL, which classifies the proposals of a trained method. scripts/second_stage.py trains it."""
