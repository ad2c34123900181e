"""Proxies as judges: statistics of a trained model's subnetworks, and scores of plans by them."""
