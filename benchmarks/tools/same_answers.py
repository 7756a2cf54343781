"""How many rows of other answers differ from the first one's: ``same_answers.py REFERENCE OTHER...``; NaN is NaN."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    reference = pd.read_parquet(sys.argv[1]).set_index("row")
    said = {}
    for path in map(Path, sys.argv[2:]):
        other = pd.read_parquet(path).set_index("row")
        present = reference.loc[reference.index.isin(other.index)]
        mine, theirs = present.to_numpy(dtype=np.float64), other.loc[present.index].to_numpy(dtype=np.float64)
        equal = ((mine == theirs) | (np.isnan(mine) & np.isnan(theirs))).all(axis=1)
        said[path.stem] = {"compared": len(present), "different": int((~equal).sum())}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
