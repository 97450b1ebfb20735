"""What runs inside Flower's own environment; nothing here imports hfl_mqtt, and nothing of hfl_mqtt imports this."""
