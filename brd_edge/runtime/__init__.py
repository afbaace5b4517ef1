"""What runs on the device: engine runners, latency, metrics, and the contract; numpy only."""
