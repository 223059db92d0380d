"""Manifests: the same spec for Kubernetes."""
