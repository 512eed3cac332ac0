"""Other programs: MQTT brokers, and agents that speak the Model Context Protocol."""
