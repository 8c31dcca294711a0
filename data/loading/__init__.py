"""Shards in, batches of clips out: manifest, plan, workers, batches."""
