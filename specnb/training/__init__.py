"""Training of the embedded models: `python -m specnb.training {tokenizer,target,drafter}`."""
