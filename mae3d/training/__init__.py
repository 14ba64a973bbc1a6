"""The training loop over a DeepSpeed engine, its optimizer, schedule, anomalies and saving."""
