"""InsightFace's data: RecordIO folders and what makes and checks them, verification packs, the training iterator."""
