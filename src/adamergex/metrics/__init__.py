"""Metrics, one file per metric; every corpus score is in percent.

Standard library only, except for number formats (CLDR through babel): a score must not change with the version of
another package. Texts are compared after ``metrics.text.comparable``. ``tests/metrics`` checks that these functions
equal their reference implementations (seqeval, rouge-score, scikit-learn, the SQuAD and MLQA scripts).
"""
