"""Commands that compute on this machine: run, plan, train, weights."""
