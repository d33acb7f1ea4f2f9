"""What a project of one's own would hold: functions that params.yaml names."""
