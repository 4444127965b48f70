"""The use cases, one file each: what flows, API, command line and SDK all call. Each is one transaction."""
