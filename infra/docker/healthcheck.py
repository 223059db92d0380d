"""Whether the container does what it should: `docker ps` shows it, and Swarm and Compose act on it.

In a container that is a Ray node, the node's own agent is asked. Where none listens there is no node: `htc run` ends by
itself, and its exit code says more than a health check could.
"""

import http.client
import sys

# Ray's default, ray._private.ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT.
AGENT_PORT = 52365
TIMEOUT_S = 8.0


def main(port: int = AGENT_PORT) -> int:
    """Return 0 for a healthy node or none at all, 1 for one that is ill or does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/api/local_raylet_healthz")
        return 0 if connection.getresponse().status == 200 else 1
    except ConnectionRefusedError:
        return 0
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
