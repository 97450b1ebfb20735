"""Hierarchical federated learning over MQTT, for fleets of small devices that are often offline."""

__version__ = "0.1.0"
