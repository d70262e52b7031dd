"""What the tasks are measured with, one file a metric; every corpus number is in percent.

Standard library only: a score must not change with the version of somebody else's package. ``tests/metrics`` holds the
numbers of the peers (seqeval, rouge-score, scikit-learn, the SQuAD and MLQA scripts) that these functions equal.
"""
