"""Reading packed data sets: shards in, batches of clips out."""
