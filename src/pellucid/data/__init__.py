"""Images and labels: layouts on disk, the decoded store, augmentation and order."""
