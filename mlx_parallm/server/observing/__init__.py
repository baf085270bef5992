"""What the server tells about itself: metrics, log lines, traces and receipts."""
