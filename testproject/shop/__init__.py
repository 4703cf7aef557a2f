"""The shop: orders come in as CSV, receipts go out as mail, pictures get smaller, the warehouse is told."""
