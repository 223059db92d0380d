"""The network's parts, from backbone to detections, and the detector that composes them."""
