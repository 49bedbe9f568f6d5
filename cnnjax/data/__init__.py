"""Examples from their storage to the device: sources, order, batches, preprocessing."""
