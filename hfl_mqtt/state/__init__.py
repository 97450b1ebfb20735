"""What a node's next life begins with: its changes, durable before anything that stands behind them is said."""
