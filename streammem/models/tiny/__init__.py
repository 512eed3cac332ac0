"""streammem-tiny: our own bridge, key heads and question head around two backbones."""
