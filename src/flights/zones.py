"""The time zone of each airport that the flights touch.

A landing can be placed in time only with its airport's zone, and the flights table must be cut at ``as_of`` by itself,
without a second table to look zones up in. The zones agree with ``airports.csv`` (a test compares them), which lacks
the four airports of Puerto Rico and the Virgin Islands.
"""

from types import MappingProxyType

NEW_YORK = "America/New_York"
"""The zone of the three origins."""

_AIRPORTS = {
    "America/Anchorage": "ANC",
    "America/Chicago": "AUS BHM BNA DFW DSM HOU IAH MCI MDW MEM MKE MSN MSP MSY OKC OMA ORD SAT STL TUL XNA",
    "America/Denver": "ABQ BZN DEN EGE HDN JAC MTJ SLC",
    "America/Los_Angeles": "BUR LAS LAX LGB OAK PDX PSP SAN SEA SFO SJC SMF SNA",
    NEW_YORK: (
        "ACK ALB ATL AVL BDL BGR BOS BTV BUF BWI CAE CAK CHO CHS CLE CLT CMH CRW CVG DAY DCA DTW EYW FLL GRR GSO GSP "
        "IAD ILM IND JAX LEX LGA MCO MHT MIA MVY MYR ORF PBI PHL PIT PVD PWM RDU RIC ROC RSW SAV SBN SDF SRQ SYR TPA "
        "TVC TYS"
    ),
    "America/Phoenix": "PHX",
    "America/Puerto_Rico": "BQN PSE SJU STT",
    "Pacific/Honolulu": "HNL",
}

ZONES = MappingProxyType({airport: zone for zone, airports in _AIRPORTS.items() for airport in airports.split()})
"""Airport code → IANA time zone."""
