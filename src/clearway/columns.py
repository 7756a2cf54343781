"""Reserved column names of the feature tables. Every other column is a feature."""

ROW_ID = "row_id"
"""Unique identity of the question asked; string."""
ENTITY = "entity"
"""Routing key, the thing that must see one version through a rollout; string or null."""
PREDICTION_TIME = "prediction_time"
"""When the question was asked (UTC); null where the data knows no time."""
LABEL_TIME = "label_time"
"""When the answer became known (UTC); null where it is not known or the data knows no time."""
LABEL = "label"
"""The answer: 0.0 or 1.0, the name of a class as text, or a number (:mod:`clearway.target`); null where it is not
known."""

RESERVED = (ROW_ID, ENTITY, PREDICTION_TIME, LABEL_TIME, LABEL)

REPEATED = r"~[1-9][0-9]*$"
"""How an id ends that a replay asks again: ``12~2`` is row 12 in the third round. A pattern."""
