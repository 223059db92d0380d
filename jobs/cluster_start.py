"""The module name by which release 0.1.0 started `jobs.entrypoints.cluster_job`.

Kept for one release, for jobs and images that still use it.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("jobs.entrypoints.cluster_job", run_name="__main__", alter_sys=True)
