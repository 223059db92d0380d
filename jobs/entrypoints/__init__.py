"""Programs that others start by name: on a cluster, by the scheduler, in Kubernetes."""
