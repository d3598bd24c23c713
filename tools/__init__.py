"""The command line (`octavo say`, `voices`, `inspect`, `doctor`) and the scripts run as `python -m octavo.tools.X`."""
