"""Publishes events to an MQTT broker, with Home Assistant's discovery: see ``publisher.py``."""
