"""Incidents: detect, contain and confirm, recover, report. Reads the record, acts through the rooms below.

Empty until a version brings it; stopping one run is the governor's `kill` until then.
"""
