"""What the tasks are measured with, one file a metric; every corpus number is in percent.

Standard library only, but for languages' number formats (CLDR through babel): a score must not change with the version
of another package. Texts are compared in the form of ``metrics.text.comparable``. ``tests/metrics`` holds the
numbers of the peers (seqeval, rouge-score, scikit-learn, the SQuAD and MLQA scripts) that these functions equal.
"""
