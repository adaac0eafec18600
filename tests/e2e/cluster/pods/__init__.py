"""Real kubelets with real pods: what the chart renders runs as it would on somebody's nodes."""
