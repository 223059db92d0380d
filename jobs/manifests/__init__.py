"""A job spec or a schedule in the words of Kubernetes, systemd and Airflow."""
