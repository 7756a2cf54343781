"""What schema.yaml asks of single columns of the flights, for the tools that take it as arguments."""

BOUNDS = {
    "year": (2013, 2013), "month": (1, 12), "day": (1, 31), "dep_time": (1, 2400), "sched_dep_time": (0, 2359),
    "dep_delay": (-60, 1500), "arr_time": (1, 2400), "sched_arr_time": (0, 2359), "arr_delay": (-120, 1500),
    "flight": (1, 9999), "air_time": (15, 900), "distance": (10, 6000), "hour": (0, 23), "minute": (0, 59),
}  # fmt: skip
NOT_NULL = ("year", "month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "time_hour")
MEANS = {"dep_delay": (2, 30), "air_time": (120, 180), "distance": (850, 1250)}
ORIGINS = ("EWR", "JFK", "LGA")
DEST = "[A-Z]{3}"
TAILNUM = "[ND][0-9A-Z]+"
KEY = ("time_hour", "carrier", "flight")
ROWS = (1000, 400_000)
