"""What is wrong with an InsightFace data folder: every fault by record number, with what to do.

`scan` goes through train.rec from end to end, once; `index` holds train.idx, record 0 and the identity records against
each other, `identities` the labels against these and property. What is held meanwhile is a few bytes an identity; what
has to be sorted (the index by key and by place, the images by content) is sorted on the disk.
"""

from vargface.data.check.findings import Finding
from vargface.data.check.scan import Checked, check

__all__ = ["Checked", "Finding", "check"]
