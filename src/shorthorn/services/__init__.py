"""Use cases behind the CSI calls; they see only domain ports."""
