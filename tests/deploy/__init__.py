"""The systemd units, the installer, the alerts and the dashboard, tried by their own tools."""
